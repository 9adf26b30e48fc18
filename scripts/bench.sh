#!/usr/bin/env bash
# Prints the measures of docs/performance.md beside their baselines. See scripts/bench.sh --help.
set -euo pipefail
cd "$(dirname "$0")/.."
# What the programs log of each extract is of no interest here.
export RUST_LOG="${RUST_LOG:-warn}"
exec cargo bench --quiet --locked --bench measures -- "$@"
