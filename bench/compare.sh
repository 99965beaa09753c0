#!/usr/bin/env bash
# RingMQ and Apache RocketMQ side by side under ringmq-bench, in turns; the one that rests is stopped (SIGSTOP).
# Prints a table of medians, writes it into docs/performance.md and keeps every result as JSON.
#
#   bench/compare.sh [options] [row...]     rows: 1 to 11 (default: all), 14 (overload, printed only)
#   --rounds N   runs of each case and side (5)         --data DIR   where both keep their stores (target/bench-data)
#   --secs S     measured seconds of a run (5)          --warm S     seconds of load before them (2)
#   --pin        broker on processor 0, client on 1     --shards N   of RingMQ (one per processor)
#   --memory M   of RingMQ (1GiB)                       --flush-original ASYNC_FLUSH|SYNC_FLUSH (ASYNC_FLUSH)
#   --alone      RingMQ only                            --no-docs    leave docs/performance.md as it is
#   --lock FILE  hold this lock during each run, for machines on which others measure too
#
# Needs JDK 17 and Maven for the original; without them its side is skipped, and the output says so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

rounds=5 secs=5 warm=2 data=target/bench-data pin= shards=$(nproc) memory=1GiB flush=ASYNC_FLUSH alone= docs=1 lock=
command_line="bench/compare.sh $*"
rows=()
while [ $# -gt 0 ]; do
  case "$1" in
    --pin) pin=1 && shift && continue ;;
    --alone) alone=1 && shift && continue ;;
    --no-docs) docs= && shift && continue ;;
    --*) [ $# -gt 1 ] || { sed -n '2,16p' "${BASH_SOURCE[0]}" >&2; exit 2; } ;;
  esac
  case "$1" in
    --rounds) rounds=$2 ;;
    --secs) secs=$2 ;;
    --warm) warm=$2 ;;
    --data) data=$2 ;;
    --shards) shards=$2 ;;
    --memory) memory=$2 ;;
    --flush-original) flush=$2 ;;
    --lock) lock=$2 ;;
    [0-9]*) rows+=("$1") && shift && continue ;;
    *) sed -n '2,16p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
  esac
  shift 2
done
[ ${#rows[@]} -gt 0 ] || rows=(1 2 3 4 5 6 7 8 9 10 11)

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
target=$(cd "$target" && pwd)
results=$target/bench-results/$(date +%Y%m%d-%H%M%S)
mkdir -p "$results" "$data"
data=$(cd "$data" && pwd)
work=$(mktemp -d -p "$data" compare.XXXXXX)
log=$results/compare.log
cpus=() client=()
if [ -n "$pin" ]; then cpus=(taskset -c 0) client=(--cpus 1); fi
ours_pids='' ours_namesrv='' original_pids='' original_broker='' original_namesrv=''

say() { echo "=== $*"; }
port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
signal() { # SIGNAL pid...
  local one=$1 pid
  shift
  for pid in "$@"; do kill "-$one" "$pid" 2>/dev/null || true; done
}

end_of() { # pid...: ends processes that this script started
  local pid
  for pid in "$@"; do
    kill -CONT "$pid" 2>/dev/null || true
    kill "$pid" 2>/dev/null || true
  done
  for pid in "$@"; do
    for _ in $(seq 1 120); do kill -0 "$pid" 2>/dev/null || break; sleep 0.25; done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
}

cleanup() {
  trap - EXIT INT TERM
  # shellcheck disable=SC2086
  end_of $ours_pids $original_pids
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

await() { # pid port what
  for _ in $(seq 1 240); do
    if port_open "$2"; then return 0; fi
    kill -0 "$1" 2>/dev/null || { say "$3 ended; see $log"; return 1; }
    sleep 0.25
  done
  say "$3 does not listen on port $2"
  return 1
}

free_ports() { # leaves base: base, base + 2 .. base + 5 are free
  for _ in $(seq 1 200); do
    base=$((12000 + RANDOM % 20000))
    local taken=
    for port in "$base" $((base + 1)) $((base + 3)) $((base + 4)); do port_open "$port" && taken=1; done
    [ -n "$taken" ] || return 0
  done
  return 1
}

start_ours() { # flush
  free_ports
  env -u RINGMQ_BIN "${cpus[@]}" "$target/release/ringmq" standalone --store "$work/ours-$1" --bind 127.0.0.1 --namesrv-port "$base" --port $((base + 3)) \
    --shards "$shards" --memory "$memory" --set "flushDiskType=$1" >>"$log" 2>&1 &
  ours_pids=$! ours_namesrv=127.0.0.1:$base
  await "$ours_pids" $((base + 3)) RingMQ
  sleep 1
}

stop_ours() {
  # shellcheck disable=SC2086
  end_of $ours_pids
  ours_pids=
  rm -rf "$work"/ours-*
}

start_original() {
  if [ -n "$alone" ]; then return 1; fi
  for tool in java mvn; do
    command -v $tool >/dev/null || { say "SKIPPED Apache RocketMQ: there is no $tool"; return 1; }
  done
  local classpath=$target/original.classpath home=$work/original
  if [ ! -s "$classpath" ] || [ bench/original/pom.xml -nt "$classpath" ]; then
    mvn -q -B -f bench/original/pom.xml dependency:build-classpath -Dmdep.outputFile="$classpath" >>"$log" 2>&1 \
      || { say "SKIPPED Apache RocketMQ: Maven could not fetch it; see $log"; return 1; }
  fi
  free_ports
  mkdir -p "$home"
  # It will be stopped for a while again and again, so no connection and no registration may expire meanwhile.
  printf '%s\n' "listenPort=$base" bindAddress=127.0.0.1 "kvConfigPath=$home/kvConfig.json" "configStorePath=$home/namesrv.properties" \
    scanNotActiveBrokerInterval=86400000 serverChannelMaxIdleTimeSeconds=86400 >"$home/namesrv.conf"
  # Its defaults, but for places, and a send may wait 2 s in its queue instead of 0.2 s before it is refused as "broker busy".
  printf '%s\n' brokerClusterName=DefaultCluster brokerName=original brokerId=0 brokerRole=ASYNC_MASTER "flushDiskType=$flush" \
    brokerIP1=127.0.0.1 "listenPort=$((base + 3))" bindAddress=127.0.0.1 "haListenPort=$((base + 4))" "namesrvAddr=127.0.0.1:$base" \
    serverChannelMaxIdleTimeSeconds=86400 clientChannelMaxIdleTimeSeconds=86400 "storePathRootDir=$home/store" \
    "storePathCommitLog=$home/store/commitlog" diskMaxUsedSpaceRatio=95 waitTimeMillsInSendQueue=2000 >"$home/broker.conf"
  local java=(java -Duser.home="$home" -Drocketmq.home.dir="$home" --add-opens=java.base/java.nio=ALL-UNNAMED
    --add-opens=java.base/sun.nio.ch=ALL-UNNAMED --add-exports=java.base/jdk.internal.ref=ALL-UNNAMED -cp "$(cat "$classpath")")
  "${java[@]}" -Xms128m -Xmx256m -XX:+UseSerialGC org.apache.rocketmq.namesrv.NamesrvStartup -c "$home/namesrv.conf" >>"$log" 2>&1 &
  local namesrv=$!
  original_pids=$namesrv
  await "$namesrv" "$base" "the original's name server" || return 1
  "${cpus[@]}" "${java[@]}" -Xms4g -Xmx4g -XX:MaxDirectMemorySize=2g -XX:+UseG1GC -XX:G1HeapRegionSize=16m -XX:G1ReservePercent=25 \
    -XX:InitiatingHeapOccupancyPercent=30 -XX:SoftRefLRUPolicyMSPerMB=0 -XX:-UseLargePages \
    org.apache.rocketmq.broker.BrokerStartup -c "$home/broker.conf" >>"$log" 2>&1 &
  original_broker=$!
  original_pids="$namesrv $original_broker" original_namesrv=127.0.0.1:$base
  await "$original_broker" $((base + 3)) "the original's broker" || return 1
  sleep 2
}

wake() { # side: the other one rests; leaves namesrv and broker
  local side=$1 pids=$ours_pids rest=$original_pids
  namesrv=$ours_namesrv
  if [ "$side" = original ]; then namesrv=$original_namesrv pids=$original_pids rest=$ours_pids; fi
  broker=$pids
  if [ "$side" = original ]; then broker=$original_broker; fi
  # shellcheck disable=SC2086
  signal STOP $rest
  # shellcheck disable=SC2086
  signal CONT $pids
  sync
  sleep 1
}

# One run on one side. Name and label make up the table's row.
bench() { # side label verb...
  local side=$1 label=$2 namesrv broker
  shift 2
  wake "$side"
  number=$((number + 1))
  "$target/release/ringmq-bench" "$@" -n "$namesrv" --broker-pid "${broker// /,}" --name "$label/$side" "${client[@]}" \
    --json "$results/$(printf '%04d' "$number").json" --hlog "$results/$(printf '%04d' "$number").hlog" >>"$log" 2>&1 \
    || say "no result: $label on $side; see $log"
}

turn() { # side label verb...: bench, under the lock if there is one
  if [ -z "$lock" ]; then bench "$@"; return; fi
  exec 9>>"$lock"
  flock 9
  bench "$@"
  exec 9>&-
}

both() { # label verb...
  local label=$1 side round
  shift
  for round in $(seq 1 "$rounds"); do
    for side in "${sides[@]}"; do
      say "$label, round $round, $side"
      turn "$side" "$label" "$@" -t "bench-$RANDOM$RANDOM" --warm "$warm" --secs "$secs"
    done
  done
}

ours_only() { # label verb...
  local sides=(ours)
  both "$@"
}

drain() { # label seconds-of-fill mode
  local side round topic
  for round in $(seq 1 "$rounds"); do
    for side in "${sides[@]}"; do
      topic=bench-$RANDOM$RANDOM
      say "$1, round $round, $side"
      turn "$side" "fill for $1" batchproducer -w 16 -t "$topic" --warm 0 --secs "$2"
      turn "$side" "$1" consumer --mode "$3" -t "$topic"
      [ "$side" = original ] || turn "$side" "$1, native" consumer --protocol native --mode "$3" -t "$topic"
    done
  done
}

overload() {
  local side namesrv broker
  for side in "${sides[@]}"; do
    say "14: overload, $side"
    wake "$side"
    "$target/release/ringmq-bench" overload -n "$namesrv" --broker-pid "${broker// /,}" --secs $((2 * secs)) --json "$results/overload-$side.result" \
      >"$results/overload-$side.txt" 2>>"$log" || say "overload on $side ended with $?; see $log"
    sed 's/^/    /' "$results/overload-$side.txt"
  done
}

say "building"
cargo build --release >>"$log" 2>&1 || { tail -20 "$log"; exit 1; }
cargo build --release -p ringmq-bench >>"$log" 2>&1 || { tail -20 "$log"; exit 1; }
number=0
sides=(ours)
if start_original; then sides=(original ours); fi
start_ours SYNC_FLUSH
say "warming up"
for side in "${sides[@]}"; do turn "$side" "warm-up" producer -w 64 -t "warm-$side" --warm 0 --secs $((4 * secs)); done
rm -f "$results"/*.json "$results"/*.hlog

for row in "${rows[@]}"; do
  # A row can write ten gigabytes; a full disk is refused, and that is no figure.
  stop_ours
  start_ours SYNC_FLUSH
  case $row in
    1) both "1: single sends, 64 in flight" producer -w 64 ;;
    2) both "2: single sends, 1,024 in flight" producer -w 1024 ;;
    3) both "3: single sends, one in flight" producer -w 1 ;;
    4) both "4: batches of 32, 64 in flight" batchproducer -w 64 ;;
    5)
      ours_only "5: native, 60 records a frame (64 KiB), 16 in flight" batchproducer -b 60 -w 16 --protocol native
      ours_only "5: native, 240 records a frame (256 KiB), 8 in flight" batchproducer -b 240 -w 8 --protocol native
      ;;
    6)
      ours_only "6: native, one record a frame, 1,024 in flight" producer -w 1024 --protocol native
      ours_only "6: native, one record a frame, one in flight" producer -w 1 --protocol native
      ;;
    7) drain "7: drain, hot" "$secs" catch-up ;;
    8) drain "8: drain, cold" $((12 * secs)) cold ;;
    9)
      both "9: end to end at 1,000/s" end-to-end --rate 1000
      both "9: end to end at 5,000/s" end-to-end --rate 5000
      ;;
    10)
      stop_ours
      start_ours ASYNC_FLUSH
      ours_only "10: ours not flushed, 64 in flight" producer -w 64
      ours_only "10: ours not flushed, 1,024 in flight" producer -w 1024
      ;;
    11)
      both "11: 1 topic, 64 in flight" producer -w 64 --topics 1 --queues 1
      both "11: 10,000 topics, 64 in flight" producer -w 64 --topics 10000 --queues 1
      ;;
    14) overload ;;
    *) say "SKIPPED row $row: it is no load for this script (12: bench/README.md; 13: the README)" ;;
  esac
done

[ "$number" -gt "${#sides[@]}" ] || docs='' # no row made any
[ -z "$docs$(ls "$results"/*.json 2>/dev/null)" ] || "$target/release/ringmq-bench" table "$results"/*.json >"$results/table.md"
# shellcheck disable=SC2086
end_of $ours_pids $original_pids
ours_pids='' original_pids=''
"$target/release/ringmq" doctor --store "$work" >"$results/machine.txt" 2>&1 || true
[ ! -e "$results/table.md" ] || cat "$results/table.md"
say "every run: $results"
if [ -n "$docs" ]; then
  mkdir -p docs
  {
    echo "# Performance"
    echo
    echo "Written by \`$command_line\` on $(date -u +%Y-%m-%d). Each figure is the median of $rounds runs of $secs s after $warm s of load; the"
    echo "sides take turns, and the one that rests is stopped. Both are driven by the same client, \`ringmq-bench\`, over the remoting"
    echo "protocol with 1 KiB messages and 4 queues unless a row says otherwise. CPU-s are per million messages. A row in which others used"
    echo "more than 0.3 processors is marked with (!): repeat it on a quiet machine."
    echo
    cat "$results/table.md"
    echo
    echo "The machine after the runs, as \`ringmq doctor\` sees it:"
    echo
    sed -n 's/^/    /p' "$results/machine.txt" | sed "s|$work|DIR|; /tuning.README/d; s/ *$//"
  } >docs/performance.md
  say "docs/performance.md is written"
fi
