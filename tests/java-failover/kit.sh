#!/usr/bin/env bash
# The conformance kit against a pair under a controller.
#
#   tests/java-failover/kit.sh [TAGS]             default: what .ci/run claims
#   KIT_KILLS=N       meanwhile kills the master N times (default 0), KIT_KILL_EVERY_S seconds apart (default 15), and starts it
#                     again at once; tests that fail then get a second try without kills
#   RINGMQ_KIT        the kit (default ../shared/conformance beside the repository)
#   RINGMQ_BIN        the binary (default target/release/ringmq)
set -uo pipefail
exec </dev/null
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
binary=$(realpath "${RINGMQ_BIN:-${CARGO_TARGET_DIR:-$root/target}/release/ringmq}")
kit=$(realpath "${RINGMQ_KIT:-$root/../shared/conformance}")
unset RINGMQ_BIN RINGMQ_KIT # A variable that starts with RINGMQ_ is a configuration key to the broker.
tags=${1:-route,send,pull,push,filter,retry,delay,transaction,query,admin,pop,requestreply,trace,mqadmin,protocol}
work=$root/target/java-failover-kit
rm -rf "$work" && mkdir -p "$work"
# shellcheck source=tests/java-failover/pair.sh
source "$here/pair.sh"
start_pair
export NAMESRV_ADDR=$namesrv

bash "$kit/run.sh" "$tags" >"$work/kit.out" 2>&1 &
pids[kit]=$!
for kill in $(seq 1 "${KIT_KILLS:-0}"); do
  sleep "${KIT_KILL_EVERY_S:-15}"
  kill -0 "${pids[kit]}" 2>/dev/null || break
  kill_master
  start_broker "$victim"
  echo "kill $kill: broker $victim"
  await "two brokers in sync" 120 in_sync 2
done
wait "${pids[kit]}"
result=$?
unset "pids[kit]"
cat "$work/kit.out"
failed=$(awk '$1 == "FAILED" { sub(/\[.*/, "", $2); print $2 }' "$work/kit.out" | sort -u | paste -sd, -)
if [ -n "$failed" ] && [ "${KIT_KILLS:-0}" != 0 ]; then
  await "two brokers in sync" 120 in_sync 2
  echo "second try: $failed"
  bash "$kit/run.sh" -t "$failed"
  result=$?
fi
exit "$result"
