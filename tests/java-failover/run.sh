#!/usr/bin/env bash
# Kills the master of a pair again and again while RocketMQ's own Java client sends, and checks what the client was promised.
#
#   tests/java-failover/run.sh [CYCLES]        default 5
#   FAILOVER_RESTART_MS  how long a killed broker stays away (default 0: whoever supervises it starts it at once)
#   FAILOVER_POLL_MS     the client's pollNameServerInterval (default: as it ships, 30000)
#   FAILOVER_THREADS     threads that send one message after the other (default 4)
#   RINGMQ_BIN           the binary (default target/release/ringmq)
# Two brokers, one controller and a name server on loopback. Needs a JDK 17 and Maven. Everything lands in
# FAILOVER_WORK (default target/java-failover). Exit code 1 if something acknowledged is lost, out of order, or there more often than it was sent.
set -uo pipefail
exec </dev/null
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
binary=$(realpath "${RINGMQ_BIN:-${CARGO_TARGET_DIR:-$root/target}/release/ringmq}")
unset RINGMQ_BIN # A variable that starts with RINGMQ_ is a configuration key to the broker.
cycles=${1:-5} restart_ms=${FAILOVER_RESTART_MS:-0} threads=${FAILOVER_THREADS:-4}
work=$(realpath -m "${FAILOVER_WORK:-$root/target/java-failover}")
classes=$here/target/classes
rm -rf "$work" && mkdir -p "$work/ledger"
# shellcheck source=tests/java-failover/pair.sh
source "$here/pair.sh"

if [ ! -s "$here/target/classpath" ] || [ -n "$(find "$here/pom.xml" "$here/src" -newer "$here/target/classpath")" ]; then
  mvn -q -B -f "$here/pom.xml" compile dependency:build-classpath -Dmdep.outputFile="$here/target/classpath" >"$work/mvn.log" 2>&1 \
    || { tail -20 "$work/mvn.log"; fail "Maven"; }
  touch "$here/target/classpath"
fi
java=(java -Xms64m -Xmx512m -Duser.home="$work" "-Dpoll=${FAILOVER_POLL_MS:-}" -Drocketmq.client.logUseSlf4j=true
  -cp "$classes:$(cat "$here/target/classpath")" failover.Main)

acks() { cat "$work"/ledger/acks-* 2>/dev/null | wc -l; }
more_acks() { [ "$(acks)" -gt "$1" ]; }

start_pair
"${java[@]}" produce "$namesrv" failover "$work/ledger" "$threads" >"$work/producer.log" 2>&1 &
producer=$!
pids[producer]=$producer
await "the first acknowledgements" 60 more_acks 100

for cycle in $(seq 1 "$cycles"); do
  await "two brokers in sync" 120 in_sync 2
  before=$(acks)
  await "acknowledgements" 120 more_acks $((before + 50))
  sleep "0.$((RANDOM % 1000))"
  date +%s%3N >>"$work/ledger/kills"
  kill_master
  before=$(acks)
  sleep "$(printf '%d.%03d' $((restart_ms / 1000)) $((restart_ms % 1000)))"
  start_broker "$victim"
  await "acknowledgements after kill $cycle" 120 more_acks $((before + 20))
done
await "two brokers in sync" 120 in_sync 2
touch "$work/ledger/stop"
wait "$producer"
unset "pids[producer]"
cat "$work/producer.log"
"${java[@]}" check "$namesrv" failover "$work/ledger"
