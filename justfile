# Short names for what the scripts do; `just` lists them.

default:
    @just --list

# Compile and lint everything.
check:
    cargo fmt --check && cargo clippy --locked --all-targets -- -D warnings

# Set-up and every test.
test:
    scripts/test.sh

# The main job, step by step, in ./playground.
demo:
    scripts/demo.sh

# Commit on the server until visible on a watching client, beside the bare commit.
latency *ARGS:
    scripts/latency.sh {{ARGS}}

# Licences, bans and sources of the dependencies, from the lock file.
deny:
    cargo deny check bans licenses sources
