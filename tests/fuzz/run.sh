#!/bin/sh
# Runs one fuzz target and says what came of it:
#
#	run.sh PROGRAMS WORK TARGET SECONDS RUNS
#
# For so many seconds, beginning with the kept corpus; what is found on the way stays in WORK. With
# RUNS at 0 the kept corpus is tried once and nothing is made up. An input that breaks something is
# left in WORK/TARGET/findings: README.md says what to do with it.
set -eu
programs=$1 work=$2/$3 target=$3 seconds=$4 runs=$5
cd "$(dirname "$0")"
mkdir -p "$work/corpus" "$work/findings"

# A machine that emulates guests beside this one is slow: 10 s for what takes milliseconds is a hang.
set -- -max_total_time="$seconds" -runs="$runs" -timeout=10 -rss_limit_mb=512 -max_len=4096
[ ! -e "dictionaries/$target" ] || set -- "$@" -dict="dictionaries/$target"
began=$(date +%s)
status=0
RUST_BACKTRACE=1 "$programs/$target" "$@" -print_final_stats=1 -artifact_prefix="$work/findings/" \
	"$work/corpus" "corpus/$target" > "$work/log" 2>&1 || status=$?
took=$(($(date +%s) - began))

told() { sed -n "s/^stat::$1: *//p" "$work/log"; }
covered=$(sed -n 's/.* cov: \([0-9]*\) ft: \([0-9]*\) corp: \([0-9]*\).*/\1 edges, \2 features, \3 inputs/p' \
	"$work/log" | tail -n 1)
findings=0
[ "$status" = 0 ] || findings=1
echo "$target: $(told number_of_executed_units) tried in $took s: ${covered:-nothing covered}, $(told peak_rss_mb) MiB, $findings findings"
if [ "$status" != 0 ]; then
	tail -n 60 "$work/log" >&2
	exit 1
fi
