#!/usr/bin/env bash
# One scenario on every way that files travel: TLS, SSH, a place behind SFTP, a folder. Each way begins with the same customer database and
# ends with the same rows everywhere; a table tells how long each step took and how many bytes went each way. sshd is started here, on
# loopback, with keys of its own. Ends with an error where a way does not come to the same end.
#
#   PLAYGROUND=DIR   another place than ./playground-ways (it is emptied first, if this script made it)
#   BIN=DIR          programs that are built already
set -euo pipefail
if [ $# -gt 0 ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    [ "$1" = "-h" ] || [ "$1" = "--help" ] || exit 2
    exit 0
fi
cd "$(dirname "$0")/.."
top=$PWD
playground=${PLAYGROUND:-$top/playground-ways}
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }
sql() { sqlite3 -batch -cmd '.timeout 20000' "$@"; }

missing=()
command -v sqlite3 >/dev/null || missing+=(sqlite3)
command -v ssh-keygen >/dev/null || missing+=(openssh-client)
[ -x /usr/sbin/sshd ] || missing+=(openssh-server)
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
    [ -e "$playground/.made-by-ways" ] || fail "$playground exists and was not made by this script"
    rm -rf "$playground"
fi
mkdir -p "$playground"
touch "$playground/.made-by-ways"

service='' sshd='' noting=''
stop() {
    for process in $noting $service $sshd; do kill "$process" 2>/dev/null || true; done
    for process in $noting $service $sshd; do wait "$process" 2>/dev/null || true; done
    service='' sshd='' noting=''
}
trap stop EXIT

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}
wait_for_port() {
    for _ in $(seq 200); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return; fi
        sleep 0.05
    done
    fail "nobody listens on port $1"
}
# An sshd whose authorized_keys holds one line for each node: LINE NODE prints what stands before its key.
start_sshd() {
    mkdir ssh
    ssh_port=$(free_port)
    ssh-keygen -q -t ed25519 -N '' -f ssh/host
    for node in ANNA BERT; do
        ssh-keygen -q -t ed25519 -N '' -C "$node" -f "ssh/$node"
        printf 'restrict,command="%s" %s\n' "$("$1" "$node")" "$(cat "ssh/$node.pub")" >>ssh/authorized_keys
    done
    printf '[127.0.0.1]:%s %s\n' "$ssh_port" "$(cut -d' ' -f1,2 ssh/host.pub)" >ssh/known_hosts
    [ "$(id -u)" != 0 ] || mkdir -p /run/sshd
    printf '%s\n' "Port $ssh_port" "ListenAddress 127.0.0.1" "HostKey $PWD/ssh/host" "AuthorizedKeysFile $PWD/ssh/authorized_keys" "PidFile none" \
        "StrictModes no" "UsePAM no" "PermitRootLogin prohibit-password" "PasswordAuthentication no" "Subsystem sftp internal-sftp" >ssh/config
    /usr/sbin/sshd -D -e -f "$PWD/ssh/config" 2>ssh/log &
    sshd=$!
    wait_for_port "$ssh_port"
}

# Bytes on loopback; nothing else should be talking there.
on_line() { cat /sys/class/net/lo/statistics/tx_bytes; }
# Bytes of all letters that were ever seen on the carrier.
note_letters() { find "$place" \( -name '*.part' -o -name '*.last' \) -printf '%p %s\n' 2>/dev/null >>letters.seen || true; }
in_letters() { note_letters; sort -u letters.seen 2>/dev/null | awk '{ sum += $NF } END { print sum + 0 }'; }
moved() { if [ -n "$place" ]; then in_letters; else on_line; fi; }

rows=()
# timed WHAT COMMAND..
timed() {
    local what=$1 began bytes ended
    shift
    began=$(date +%s%N) bytes=$(moved)
    "$@"
    ended=$(date +%s%N)
    rows+=("$(printf '%-7s %-38s %8.2f s %12s' "$way" "$what" "$(awk "BEGIN { print ($ended - $began) / 1000000000 }")" "$(($(moved) - bytes))")")
}

sync_all() { for node in anna bert; do remote-sync sync "$node.db" --wait 60 --quiet >>sync.log; done; }
init_all() {
    for node in ANNA BERT; do
        for try in $(seq 100); do
            # By letters the first call leaves the request, a later one finds the answer.
            code=0
            remote-sync init "${init[@]//NODE/$node}" "${node,,}.db" --quiet >>init.log 2>&1 || code=$?
            [ "$code" != 0 ] || break
            [ "$code" = 3 ] && [ -n "$place" ] || { cat init.log >&2; fail "$way: init $node"; }
            sleep 0.1
        done
        [ "$code" = 0 ] || { cat init.log >&2; fail "$way: init $node had no answer in $try tries"; }
    done
}

by_door() { printf '%s session --stdio --node %s --config %s/dockmaster.toml' "$(command -v dockmaster)" "$1" "$PWD"; }
by_sftp() { printf 'internal-sftp'; }

run_way() {
    way=$1 place=''
    mkdir "$playground/$way"
    cd "$playground/$way"
    port=$(free_port)
    sql hq.db <"$top/examples/crm.sql"
    { sed '/^\[server\]/,/^$/d' "$top/examples/crm.toml"; printf '\n[server]\nname = "HQ"\ndatabase = "hq.db"\nlisten = "127.0.0.1:%s"\n' "$port"; } >dockmaster.toml
    case $way in
        ssh) start_sshd by_door ;;
        sftp)
            start_sshd by_sftp
            place=$PWD/drop
            printf '[carrier.drop]\npath = "sftp://%s@127.0.0.1:%s%s"\nssh_key = "ssh/ANNA"\nssh_known_hosts = "ssh/known_hosts"\n' "$(id -un)" "$ssh_port" "$place" >>dockmaster.toml
            ;;
        folder)
            place=$PWD/drop
            printf '[carrier.drop]\npath = "drop"\n' >>dockmaster.toml
            ;;
    esac
    dockmaster deploy --yes >deploy.log
    if [ -n "$place" ]; then
        dockmaster carrier prepare drop >>deploy.log
        # Letters that were read go: they are looked for all the time.
        while :; do note_letters; sleep 0.01; done &
        noting=$!
    fi
    for node in ANNA:5 BERT:2; do
        (umask 077 && dockmaster node add "${node%:*}" --set "employee=${node#*:}" --quiet >"${node%:*}.token")
    done
    dockmaster serve --quiet 2>serve.log &
    service=$!
    wait_for_port "$port"
    case $way in
        tls) init=("127.0.0.1:$port" --token-file NODE.token) ;;
        ssh) init=("ssh://$(id -un)@127.0.0.1:$ssh_port" --node NODE --ssh-key ssh/NODE --ssh-known-hosts ssh/known_hosts) ;;
        sftp) init=("via:sftp://$(id -un)@127.0.0.1:$ssh_port$place" --token-file NODE.token --ssh-key ssh/NODE --ssh-known-hosts ssh/known_hosts) ;;
        folder) init=("via:$place" --token-file NODE.token) ;;
    esac
    timed "two nodes get their databases" init_all
    sql hq.db "INSERT INTO opportunity VALUES (5000, 9, 5, 'Gasthof Krone, new kitchen', 48000, NULL)"
    sql anna.db "UPDATE opportunity SET amount = amount + 1 WHERE id = (SELECT min(id) FROM opportunity)"
    timed "a row each way" sync_all
    sql hq.db "WITH RECURSIVE n(i) AS (SELECT 6000 UNION ALL SELECT i + 1 FROM n WHERE i < 15999)
      INSERT INTO opportunity SELECT i, 9, 5, 'Opportunity ' || i || ' ' || hex(randomblob(100)), i, NULL FROM n"
    timed "10,000 rows down" sync_all
    sql anna.db "UPDATE opportunity SET name = name || ' (seen)' WHERE id BETWEEN 6000 AND 15999"
    timed "10,000 rows up, and down to the other" sync_all
    timed "nothing new" sync_all
    # Who sees what: ANNA her own, BERT that of all whom he leads; both are below.
    sync_all
    for node in anna bert; do
        [ "$(sql "$node.db" "SELECT id, account_id, name, amount FROM opportunity WHERE id >= 5000 ORDER BY id" | sha256sum)" = \
            "$(sql hq.db "SELECT id, account_id, name, amount FROM opportunity WHERE id >= 5000 ORDER BY id" | sha256sum)" ] || fail "$way: $node.db and hq.db differ"
        [ "$(sql "$node.db" "SELECT count(*) FROM dock_pending")" = 0 ] || fail "$way: something of $node.db was not merged"
    done
    ends+=("$(sql anna.db "SELECT id, account_id, amount, length(name) FROM opportunity ORDER BY id" | sha256sum) $(sql bert.db "SELECT id, account_id, amount, length(name) FROM opportunity ORDER BY id" | sha256sum)")
    stop
    cd "$top"
}

ends=()
for each in tls ssh sftp folder; do run_way "$each"; done
for end in "${ends[@]}"; do [ "$end" = "${ends[0]}" ] || fail "the ways do not come to the same end"; done
printf '%-7s %-38s %10s %12s\n' WAY STEP TIME BYTES
printf '%s\n' "${rows[@]}"
printf 'Every way ended with the same rows. Bytes: on the line (both directions, with what SSH, TLS and TCP add), or of the letters.\n'
