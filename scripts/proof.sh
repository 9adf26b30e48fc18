#!/usr/bin/env bash
# Runs the harnesses of docs/reliability.md and prints their table: scripts/proof.sh [--quick|--full]
#   --quick  every harness with the figures of the ordinary run (default)
#   --full   kills and power cuts by the thousand; takes hours
set -euo pipefail
mode=quick
case "${1:---quick}" in
    --quick) ;;
    --full) mode=full ;;
    *)
        sed -n '2,4s/^# //p' "$0"
        [ "$1" = "-h" ] || [ "$1" = "--help" ] || exit 2
        exit 0
        ;;
esac
cd "$(dirname "$0")/.."

kills=500 cuts=40 cases=2000
[ "$mode" = full ] && kills=100000 cuts=10000 cases=100000

# What is proved | the test | its environment
harnesses=(
    "every named crash point|crash_points::f1_c18_e5_each_program_killed_once_at_every_named_point|"
    "the stages, before each operation on a file|crash_points::f2_c18_the_stages_killed_before_every_operation_on_a_file_each_time_on_what_the_last_death_left|"
    "a node, before each operation on a file|crash_points::f2_e5_a_node_killed_before_every_operation_on_a_file_each_time_on_what_the_last_death_left|"
    "the service, before each operation on a file|acknowledged::f1_mi17_what_the_service_acknowledged_is_there_wherever_it_dies_while_a_node_sends|"
    "deaths within recovery|crash_points::f2_dying_again_and_again_at_random_points_while_it_recovers_from_the_death_before|"
    "random kills|kills::f1_x1_i1_both_programs_killed_at_random_moments_of_a_busy_run|DOCKMASTER_KILLS=$kills"
    "power cuts|kills::power::f3_f4_f5_power_cuts_on_real_file_systems_lose_and_double_nothing|DOCKMASTER_CUTS=$cuts"
    "order of flushes|flush_order::f3_f4_every_file_is_flushed_before_its_name_and_its_folder_before_anybody_is_told|"
    "errors of calls, stages|scenarios::injected::f8_errors_of_the_disk_at_every_call_of_the_stages|"
    "errors of calls, a node|scenarios::injected::f8_errors_of_the_disk_at_every_call_of_a_node|"
    "random sites against the oracle|pipeline::i1_r7_every_node_is_at_one_unit_of_the_server_whatever_happens_and_no_file_tells_more|PIPELINE_CASES=$cases"
    "planted defects|defects::g1_g3_each_defect_that_is_planted_is_seen_by_its_harness|"
)

cargo test --locked --test it --no-run
log=$(mktemp)
table=$(mktemp)
trap 'rm -f "$log" "$table"' EXIT
status=0
printf '%s\n' "harness|result|seconds|what it says" >"$table"
for harness in "${harnesses[@]}"; do
    IFS='|' read -r what test environment <<<"$harness"
    printf '\n== %s\n' "$what"
    began=$(date +%s)
    result=passed
    env ${environment:+"$environment"} cargo test --locked --quiet --test it -- --exact "$test" --nocapture >"$log" 2>&1 || result=FAILED
    # What failed is not hidden by what it skipped before.
    if [ "$result" = passed ]; then
        grep -q 'running 0 tests' "$log" && result=MISSING
        grep -Eq '^([a-z-]+: )?SKIPPED' "$log" && result=SKIPPED
    fi
    took=$(($(date +%s) - began))
    seen=$(grep -c ' seen after ' "$log" || true)
    says=$(grep -E '^(killed:|cuts:|[0-9]+ cases, )' "$log" | tail -1 || true)
    [ "$seen" -gt 0 ] && says="$seen defects seen"
    printf '%s\n' "$what|$result|$took|$says" >>"$table"
    case "$result" in
        passed) echo "passed in $took s" ;;
        SKIPPED) grep -E '^([a-z-]+: )?SKIPPED' "$log" ;;
        *)
            status=1
            tail -40 "$log"
            ;;
    esac
done
printf '\n%s, %s, commit %s, %s cores\n' "$mode" "$(date -u +%Y-%m-%d)" "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" "$(nproc)"
column -t -s '|' "$table"
exit "$status"
