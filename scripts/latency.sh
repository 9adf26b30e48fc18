#!/usr/bin/env bash
# Prints commit-on-server to visible-in-a-watching-client, and commit-on-a-node to visible on the server and on a second
# watching node, beside the bare commit in the same run.
# Usage: scripts/latency.sh [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked --bins
exec ./target/release/dockmaster bench latency --rounds "${1:-200}"
