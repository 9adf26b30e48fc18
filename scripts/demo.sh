#!/usr/bin/env bash
# The main job, step by step: builds both programs, makes a customer database with three nodes in ./playground, inserts one
# row with plain SQL, and shows what each of the ten steps of a synchronisation leaves behind. A second act goes the other way:
# records edited offline on two nodes and the server, a conflict, a refusal, numbers that collide. Checks what it shows: it
# ends with an error where a step did not do its work.
#
#   PLAYGROUND=DIR   another place than ./playground (it is emptied first, if this script made it)
#   BIN=DIR          programs that are built already
#   PORT=N           another port than 40400
set -euo pipefail
if [ $# -gt 0 ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    [ "$1" = "-h" ] || [ "$1" = "--help" ] || exit 2
    exit 0
fi
cd "$(dirname "$0")/.."
top=$PWD
playground=${PLAYGROUND:-$top/playground}
port=${PORT:-40400}

# --- output and checks -----------------------------------------------------------------------------------------------------
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi
step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
show() {
    local word line=''
    for word in "$@"; do
        case $word in *' '*) line+=" \"$word\"" ;; *) line+=" $word" ;; esac
    done
    printf '  $%s\n' "$line"
    "$@" | sed 's/^/    /'
}
sql() { sqlite3 -batch "$@"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }
# expect WHAT FOUND WANTED
expect() { [ "$2" = "$3" ] || fail "$1: found '$2', wanted '$3'"; }

service=
stop_service() {
    [ -n "$service" ] || return 0
    kill -INT "$service" 2>/dev/null || true
    wait "$service" || true
    service=
}
trap stop_service EXIT
start_service() {
    dockmaster serve --quiet 2>>serve.log &
    service=$!
    for _ in $(seq 100); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then return; fi
        kill -0 "$service" 2>/dev/null || { cat serve.log >&2; fail "the service did not start"; }
        sleep 0.1
    done
    fail "the service does not listen on port $port"
}

# --- set-up ----------------------------------------------------------------------------------------------------------------
step "Set-up: two programs, a customer database, three nodes"
missing=()
command -v sqlite3 >/dev/null || missing+=(sqlite3)
# Only what is built needs a compiler and headers.
if [ -z "${BIN:-}" ]; then
    command -v cc >/dev/null || missing+=(gcc libc6-dev)
    pkg-config --exists openssl 2>/dev/null || missing+=(libssl-dev pkg-config)
fi
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
    else
        fail "missing: ${missing[*]} (sudo apt-get install ${missing[*]})"
    fi
fi
if [ -z "${BIN:-}" ]; then
    cargo build --locked --release
    BIN=$top/target/release
fi
export PATH=$BIN:$PATH
unset DOCKMASTER_CONFIG RUST_LOG

if [ -e "$playground" ]; then
    [ -e "$playground/.made-by-demo" ] || fail "$playground exists and was not made by this script"
    rm -rf "$playground"
fi
mkdir -p "$playground"
cd "$playground"
touch .made-by-demo

sql hq.db < "$top/examples/crm.sql"
# A rule of the server's own application, which no node knows.
sql hq.db "CREATE TABLE credit(highest NUMERIC); INSERT INTO credit VALUES (100000);
  CREATE TRIGGER credit_limit BEFORE UPDATE OF amount ON opportunity WHEN NEW.amount > (SELECT highest FROM credit)
  BEGIN SELECT RAISE(ABORT, 'the amount is above the credit limit'); END"
{ sed '/^\[server\]/,/^$/d' "$top/examples/crm.toml"; printf '\n[server]\nname = "HQ"\ndatabase = "hq.db"\nlisten = "127.0.0.1:%s"\n' "$port"; } > dockmaster.toml
show dockmaster check
show dockmaster deploy --yes
# ANNA and CORA are representatives of different teams; BERT is ANNA's manager.
# Each is let in by a token of its own, once.
add_node() {
    printf '  $ dockmaster node add %s --set %s --quiet > %s.token\n' "$1" "$2" "${1,,}"
    (umask 077 && dockmaster node add "$1" --set "$2" --quiet >"${1,,}.token")
}
add_node ANNA employee=5
add_node BERT employee=2
add_node CORA employee=8
start_service
for node in anna bert cora; do
    show remote-sync init "127.0.0.1:$port" --token-file "$node.token" "$node.db"
done
stop_service
printf '  rows of opportunity: server %s, ANNA %s, BERT %s, CORA %s\n' \
    "$(sql hq.db 'SELECT count(*) FROM opportunity')" "$(sql anna.db 'SELECT count(*) FROM opportunity')" \
    "$(sql bert.db 'SELECT count(*) FROM opportunity')" "$(sql cora.db 'SELECT count(*) FROM opportunity')"

# --- the ten steps ---------------------------------------------------------------------------------------------------------
step "1. Some program inserts a row on the server, with plain SQL. No client is connected, no service runs.   SR-1 SR-7"
show sqlite3 hq.db "INSERT INTO opportunity VALUES (5000, 9, 5, 'Gasthof Krone, new kitchen', 48000, NULL)"
show sqlite3 hq.db "SELECT * FROM opportunity WHERE id = 5000"

step "2. Its copy stands in the master transaction log, committed with it.   SR-2"
log=$(sql hq.db "SELECT max(id) FROM dock_txn_log")
show sqlite3 hq.db "SELECT id, op, c1, c2, c3, c4, c5 FROM dock_txn_log WHERE id = $log"
expect "log row" "$(sql hq.db "SELECT c4 FROM dock_txn_log WHERE id = $log")" "Gasthof Krone, new kitchen"

step "3. The Transaction Processor copies it to docking/txnproc.   SR-3"
before=$(find docking/txnproc -name '*.dx' | wc -l)
show dockmaster run txnproc
file=$(find docking/txnproc -name '*.dx' | sort | tail -n 1)
expect "new txnproc files" "$(find docking/txnproc -name '*.dx' | wc -l)" "$((before + 1))"
show dockmaster dx show "$file"

step "4. to 6. The Transaction Router writes it to the outbox of each node that may see it, on the server's host.   SR-4 SR-5 SR-6 SR-21"
show dockmaster run router
for node in ANNA BERT CORA; do
    printf '  docking/%s/outbox: %s\n' "$node" "$(find "docking/$node/outbox" -name '*.dx' -printf '%f ' | sort)"
done
newest() { find "docking/$1/outbox" -name '*.dx' | sort | tail -n 1; }
show dockmaster dx show "$(newest ANNA)"
for node in ANNA BERT; do
    dockmaster dx show "$(newest $node)" | grep -q 'Gasthof Krone' || fail "$node's outbox does not hold the row"
done
for dx in docking/CORA/outbox/*.dx; do
    [ -e "$dx" ] || continue
    ! dockmaster dx show "$dx" | grep -q 'Gasthof Krone' || fail "CORA's outbox holds a row that CORA may not see"
done
printf '  CORA: no file names the row\n'

step "7. The clients call. A machine with a token that another one used already is refused.   SR-8 to SR-11"
start_service
set +e
refused=$(remote-sync init "127.0.0.1:$port" --token-file anna.token mallory.db 2>&1)
code=$?
set -e
printf '  $ remote-sync init 127.0.0.1:%s --token-file anna.token mallory.db\n' "$port"
printf '%s\n' "$refused" | sed 's/^/    /'
expect "exit code for a used token" "$code" 2

step "8. Files go from the outbox into the client's inbox, and nothing is applied yet.   SR-12 SR-14"
for node in anna bert cora; do show remote-sync sync "$node.db" --only receive; done
for node in anna bert cora; do
    printf '  %s.db.sync/inbox: %s\n' "$node" "$(find "$node.db.sync/inbox" -name '*.dx' -printf '%f ' | sort)"
done
cmp "$(newest ANNA)" "$(find anna.db.sync/inbox -name '*.dx' | sort | tail -n 1)" || fail "inbox and outbox differ"
expect "rows before applying" "$(sql anna.db 'SELECT count(*) FROM opportunity WHERE id = 5000')" 0

step "9. The connection is closed and the service stopped. The client applies what it has; programs go on working.   SR-18 SR-19 SR-20"
stop_service
for node in anna bert cora; do show remote-sync sync "$node.db" --only apply; done

step "10. The row is in the databases of those who may see it, and nowhere else.   SR-21"
for node in anna bert cora; do
    printf '  %s.db: %s\n' "$node" "$(sql $node.db "SELECT count(*) || ' row   ' || ifnull(max(name), '') FROM opportunity WHERE id = 5000")"
done
expect "row at ANNA" "$(sql anna.db 'SELECT name FROM opportunity WHERE id = 5000')" "Gasthof Krone, new kitchen"
expect "row at BERT" "$(sql bert.db 'SELECT name FROM opportunity WHERE id = 5000')" "Gasthof Krone, new kitchen"
expect "rows at CORA" "$(sql cora.db 'SELECT count(*) FROM opportunity WHERE id = 5000')" 0

step "And a row that moves: the opportunity is handed to CORA. It vanishes from ANNA and BERT and appears at CORA."
show sqlite3 hq.db "UPDATE opportunity SET position_id = 8 WHERE id = 5000"
show dockmaster run
start_service
for node in anna bert cora; do show remote-sync sync "$node.db"; done
stop_service
for node in anna bert cora; do
    printf '  %s.db: %s\n' "$node" "$(sql $node.db "SELECT count(*) || ' row   ' || ifnull(max(name), '') FROM opportunity WHERE id = 5000")"
done
expect "rows at ANNA" "$(sql anna.db 'SELECT count(*) FROM opportunity WHERE id = 5000')" 0
expect "rows at BERT" "$(sql bert.db 'SELECT count(*) FROM opportunity WHERE id = 5000')" 0
expect "row at CORA" "$(sql cora.db 'SELECT position_id FROM opportunity WHERE id = 5000')" 8
show dockmaster status

# --- the second act --------------------------------------------------------------------------------------------------------
step "Second act. 11. One record, edited on the server and on two nodes that are not connected.   MI-8 DOE-1 DOE-11"
show sqlite3 hq.db "INSERT INTO opportunity VALUES (5001, 9, 5, 'Hotel Adler, bar', 20000, NULL)"
show dockmaster run
start_service
for node in anna bert; do show remote-sync sync "$node.db" --quiet; done
stop_service
show sqlite3 hq.db "UPDATE opportunity SET account_id = 18 WHERE id = 5001"
show sqlite3 anna.db "UPDATE opportunity SET name = 'Hotel Adler, bar and kitchen', amount = 32000 WHERE id = 5001"
show sqlite3 bert.db "UPDATE opportunity SET name = 'Adler (Bert)', closed_at = date('now') WHERE id = 5001"
show remote-sync pending anna.db || true
show remote-sync pending bert.db

step "12. They synchronise, ANNA first. Different fields come together; the name was changed by both, and the server's stands.   MI-59 MI-60 X-4"
start_service
show remote-sync sync anna.db --wait 30
show remote-sync sync bert.db --wait 30 || true
show remote-sync sync anna.db
merged="18|Hotel Adler, bar and kitchen|32000|$(date -u +%F)"
for database in hq anna bert; do
    row=$(sql $database.db "SELECT account_id, name, amount, closed_at FROM opportunity WHERE id = 5001")
    printf '  %s.db: %s\n' "$database" "$row"
    expect "the merged row in $database.db" "$row" "$merged"
done
show dockmaster conflicts list || true
show remote-sync conflicts list bert.db || true
expect "conflicts on the server" "$(sql hq.db "SELECT count(*) FROM dock_conflict WHERE column_name = 'name' AND node = 'BERT'")" 1
expect "conflicts at BERT" "$(sql bert.db "SELECT client FROM dock_conflicts WHERE column_name = 'name'")" '"Adler (Bert)"'

step "13. A change that the server refuses: it waits with its reason, the node keeps it, everything else goes on.   MI-61 MI-63 F34"
show sqlite3 anna.db "UPDATE opportunity SET amount = 250000 WHERE id = 5001"
show remote-sync sync anna.db --wait 30 || true
show dockmaster messages list --status error || true
message=ANNA:$(sql hq.db "SELECT unit FROM dock_unit WHERE node = 'ANNA' AND status = 'error'")
show dockmaster messages show "$message" || true
show remote-sync pending anna.db || true
expect "amount on the server" "$(sql hq.db 'SELECT amount FROM opportunity WHERE id = 5001')" 32000
expect "amount at ANNA" "$(sql anna.db 'SELECT amount FROM opportunity WHERE id = 5001')" 250000

step "14. Somebody raises the limit and has it tried again.   MI-53"
show sqlite3 hq.db "UPDATE credit SET highest = 300000"
show dockmaster messages retry "$message" --reason "limit raised"
for _ in $(seq 100); do
    [ "$(sql hq.db "SELECT status FROM dock_unit WHERE node = 'ANNA' ORDER BY unit DESC LIMIT 1")" = finished ] && break
    sleep 0.1
done
show remote-sync sync anna.db
expect "amount on the server" "$(sql hq.db 'SELECT amount FROM opportunity WHERE id = 5001')" 250000
expect "pending at ANNA" "$(sql anna.db 'SELECT count(*) FROM dock_pending')" 0
stop_service

step "15. Both make a new opportunity with its lines, offline, under the same number. One number changes, and the lines follow.   X-33 R12"
for node in anna bert; do
    show sqlite3 "$node.db" "INSERT INTO opportunity(account_id, position_id, name, amount) VALUES (9, 5, 'Made offline at ${node^^}', 100);
      INSERT INTO opportunity_line(opportunity_id, product_id, quantity) VALUES (last_insert_rowid(), 1, 2), ((SELECT max(id) FROM opportunity), 2, 3)"
    printf '  %s.db: %s\n' "$node" "$(sql $node.db "SELECT id, name FROM opportunity WHERE name LIKE 'Made offline%'" | paste -sd' ')"
done
start_service
show remote-sync sync anna.db --wait 30
show remote-sync sync bert.db --wait 30 || true
show remote-sync sync anna.db
stop_service
wanted=$(sql hq.db "SELECT o.id, o.name, count(l.id), sum(l.quantity) FROM opportunity AS o JOIN opportunity_line AS l ON l.opportunity_id = o.id WHERE o.name LIKE 'Made offline%' GROUP BY o.id ORDER BY o.id")
expect "opportunities with their lines" "$(printf '%s\n' "$wanted" | cut -d'|' -f2- | sort | paste -sd' ')" "Made offline at ANNA|2|5 Made offline at BERT|2|5"
for database in hq anna bert; do
    found=$(sql $database.db "SELECT o.id, o.name, count(l.id), sum(l.quantity) FROM opportunity AS o JOIN opportunity_line AS l ON l.opportunity_id = o.id WHERE o.name LIKE 'Made offline%' GROUP BY o.id ORDER BY o.id")
    printf '  %s.db: %s\n' "$database" "$(printf '%s' "$found" | paste -sd'  ')"
    expect "opportunities in $database.db" "$found" "$wanted"
done
show dockmaster status || true

step "Done. The playground is $playground; README.md says what to try next in it."
