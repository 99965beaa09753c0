#!/usr/bin/env bash
# Kills the master of a pair again and again while RocketMQ's own Java client sends, and checks what the client was promised.
#
#   tests/java-failover/run.sh [CYCLES]        default 5
#   FAILOVER_RESTART_MS  how long a killed broker stays away (default 0: whoever supervises it starts it at once)
#   FAILOVER_POLL_MS     the client's pollNameServerInterval (default: as it ships, 30000)
#   FAILOVER_THREADS     threads that send one message after the other (default 4)
#   RINGMQ_BIN           the binary (default target/release/ringmq)
# Two brokers, one controller and a name server on loopback. Needs a JDK 17 and Maven. Everything lands in
# target/java-failover. Exit code 1 if something acknowledged is lost, out of order, or there more often than it was sent.
set -uo pipefail
exec </dev/null
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
binary=$(realpath "${RINGMQ_BIN:-${CARGO_TARGET_DIR:-$root/target}/release/ringmq}")
unset RINGMQ_BIN # A variable that starts with RINGMQ_ is a configuration key to the broker.
cycles=${1:-5} restart_ms=${FAILOVER_RESTART_MS:-0} threads=${FAILOVER_THREADS:-4}
work=$root/target/java-failover
classes=$here/target/classes
rm -rf "$work" && mkdir -p "$work/ledger"
declare -A pids=() ports=()

fail() { echo "java-failover: $*" >&2; exit 1; }
cleanup() {
  kill -9 "${pids[@]}" 2>/dev/null
  wait 2>/dev/null
}
trap cleanup EXIT
trap 'exit 130' INT TERM
port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
await() { # what seconds command...
  local what=$1 end=$((SECONDS + $2))
  shift 2
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || fail "$what: not in time; see $work"
    sleep 0.05
  done
}

if [ ! -s "$here/target/classpath" ] || [ -n "$(find "$here/pom.xml" "$here/src" -newer "$here/target/classpath")" ]; then
  mvn -q -B -f "$here/pom.xml" compile dependency:build-classpath -Dmdep.outputFile="$here/target/classpath" >"$work/mvn.log" 2>&1 \
    || { tail -20 "$work/mvn.log"; fail "Maven"; }
  touch "$here/target/classpath"
fi
java=(java -Xms64m -Xmx512m -Duser.home="$work" "-Dpoll=${FAILOVER_POLL_MS:-}" -Drocketmq.client.logUseSlf4j=true
  -cp "$classes:$(cat "$here/target/classpath")" failover.Main)

for _ in $(seq 1 200); do
  base=$((12000 + RANDOM % 20000))
  for port in "$base" $((base + 2)) $((base + 6)) $((base + 16)); do port_open "$port" && continue 2; done
  break
done
namesrv=127.0.0.1:$base controller=127.0.0.1:$((base + 2))
ports=([1]=$((base + 6)) [2]=$((base + 16)))

start_broker() { # id
  "$binary" broker --store "$work/store-$1" --bind 127.0.0.1 --port "${ports[$1]}" -n "$namesrv" --shards 1 --memory 256M \
    --set brokerName=pair --set enableControllerMode=true --set "controllerAddr=$controller" \
    --set metricsPromExporterPort=$((${ports[$1]} + 3)) >>"$work/broker-$1.log" 2>&1 &
  pids[$1]=$!
}
status() { "$binary" cluster status pair --controller "$controller" -o json 2>/dev/null | tr -d ' \n' | tr '{' '\n'; } # a broker a line
master() { status | grep '"role":"master"' | sed 's/.*"address":"127\.0\.0\.1:\([0-9]*\)".*/\1/'; }
in_sync() { [ "$(status | grep '"inSync":true' | grep -c '"alive":true')" = "$1" ]; }
acks() { cat "$work"/ledger/acks-* 2>/dev/null | wc -l; }
more_acks() { [ "$(acks)" -gt "$1" ]; }

"$binary" namesrv --set "kvConfigPath=$work/kv.json" --bind 127.0.0.1 --port "$base" >"$work/namesrv.log" 2>&1 &
pids[namesrv]=$!
"$binary" controller --bind 127.0.0.1 --port $((base + 2)) --store "$work/controller" --id n0 --peers "n0-$controller" >"$work/controller.log" 2>&1 &
pids[controller]=$!
await "the controller" 30 port_open $((base + 2))
start_broker 1
await "the first broker" 30 port_open "${ports[1]}"
start_broker 2
await "two brokers in sync" 60 in_sync 2

"${java[@]}" produce "$namesrv" failover "$work/ledger" "$threads" >"$work/producer.log" 2>&1 &
producer=$!
pids[producer]=$producer
await "the first acknowledgements" 60 more_acks 100

for cycle in $(seq 1 "$cycles"); do
  await "two brokers in sync" 120 in_sync 2
  before=$(acks)
  await "acknowledgements" 120 more_acks $((before + 50))
  sleep "0.$((RANDOM % 1000))"
  port=$(master)
  victim=1
  [ "$port" = "${ports[2]}" ] && victim=2
  date +%s%3N >>"$work/ledger/kills"
  kill -9 "${pids[$victim]}"
  wait "${pids[$victim]}" 2>/dev/null
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
