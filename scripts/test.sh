#!/usr/bin/env bash
# Sets up what the tests need on a fresh Debian machine with Rust, then runs every check and every test.
set -euo pipefail
if [ $# -gt 0 ]; then
    # For one test:  cargo test --test it -- NAME
    sed -n '2s/^# //p' "$0"
    [ "$1" = "-h" ] || [ "$1" = "--help" ] || exit 2
    exit 0
fi
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

step "set-up"
# What the tests stand on beside Rust, by program or file and Debian package. They write through the sqlite3 program as well,
# because any program may write to the databases; they inject errors of system calls, fake clocks, call by another TLS, and run Django.
missing=()
pkg-config --exists openssl 2>/dev/null || missing+=(libssl-dev pkg-config)
command -v sqlite3 >/dev/null || missing+=(sqlite3)
command -v zstd >/dev/null || missing+=(zstd)
command -v ip >/dev/null || missing+=(iproute2)
command -v nft >/dev/null || missing+=(nftables)
command -v openssl >/dev/null || missing+=(openssl)
command -v ssh-keygen >/dev/null || missing+=(openssh-client)
[ -x /usr/sbin/sshd ] || missing+=(openssh-server)
command -v strace >/dev/null || missing+=(strace)
command -v mkfs.ext4 >/dev/null || [ -x /sbin/mkfs.ext4 ] || missing+=(e2fsprogs)
command -v python3 >/dev/null || missing+=(python3)
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
compgen -G '/usr/lib/*/faketime/libfaketime.so.1' >/dev/null || missing+=(libfaketime)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
    else
        echo "error: missing: ${missing[*]}" >&2
        echo "hint: install them: sudo apt-get install ${missing[*]}" >&2
        exit 2
    fi
fi
for component in rustfmt clippy; do
    cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 || rustup component add "$component"
done
cargo --version
sqlite3 --version | cut -c1-30

step "cargo fmt --check"
cargo fmt --check

step "cargo clippy"
cargo clippy --locked --all-targets -- -D warnings

step "cargo test"
cargo test --locked

step "cargo doc"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

step "all checks and tests passed"
