# Short names for what the scripts do; `just` lists them.

default:
    @just --list

# Compile and lint everything.
check:
    cargo fmt --check && cargo clippy --locked --all-targets -- -D warnings

# Set-up and every test.
test:
    scripts/test.sh

# Kill both programs at random moments of a busy run, so many times; DOCKMASTER_SEED repeats a run.
kills COUNT="500":
    DOCKMASTER_KILLS={{COUNT}} cargo test --locked --test it -- kills --nocapture

# The harnesses of docs/reliability.md, and their table.
proof MODE="--quick":
    scripts/proof.sh {{MODE}}

# The main job, step by step, in ./playground.
demo:
    scripts/demo.sh

# One scenario over TLS, SSH, SFTP and a folder, with a table of times and bytes.
ways:
    scripts/ways.sh

# Commit on the server until visible on a watching client, beside the bare commit.
latency *ARGS:
    scripts/latency.sh {{ARGS}}

# Licences, bans and sources of the dependencies, from the lock file.
deny:
    cargo deny check bans licenses sources
