#!/usr/bin/env bash
# One pass of the whole pipeline for cron: read the log, route, leave the files in the outboxes. Then the state, one line
# per node, so that the mail that cron sends says what needs a person. See crontab.example beside this file.
#
#   export-nightly.sh /etc/dockmaster/dockmaster.toml
#
# Exit codes are dockmaster's: 0 done, 1 done but something waits for a person, 2 failed, 3 busy (the service runs), try again.
set -uo pipefail
if [ $# -ne 1 ]; then
    echo "usage: $0 CONFIG" >&2
    exit 2
fi
export DOCKMASTER_CONFIG=$1
dockmaster=${DOCKMASTER:-dockmaster}

"$dockmaster" run --quiet
status=$?
if [ "$status" -ge 2 ]; then
    exit "$status"
fi
exec "$dockmaster" status
