#!/usr/bin/env bash
# Measures commit on the server -> visible in a watching client, beside the bare commit of the same statement in the same run.
# Prints percentiles and fails if the median is above 12 bare commits + 10 ms.
#
#   latency.sh [--changes N]      default 200
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --locked --release
exec target/release/dockmaster bench latency "$@"
