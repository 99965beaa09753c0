#!/usr/bin/env bash
# RingMQ, Apache RocketMQ and other brokers side by side, in turns; those that rest are stopped (SIGSTOP). RingMQ and
# RocketMQ are driven by ringmq-bench, the others by load generators of their own clients that measure alike (bench/peers).
# Prints a table of medians, writes it into docs/performance.md and keeps every result as JSON.
#
#   bench/compare.sh [options] [row...]     rows: 1 to 11 (default: all), 14 (overload, printed only)
#   --rounds N   runs of each case and side (5)         --data DIR   where both keep their stores (target/bench-data)
#   --secs S     measured seconds of a run (5)          --warm S     seconds of load before them (2)
#   --pin        broker on processor 0, client on 1     --shards N   of RingMQ (one per processor)
#   --memory M   of RingMQ (1GiB; 6GiB in row 7, whose backlog is to be in its tail cache as it is in the others' page cache)
#                                                       --flush-original ASYNC_FLUSH|SYNC_FLUSH (ASYNC_FLUSH)
#   --peers LIST original,kafka,nats,iggy (all), or none: what RingMQ is compared with; it joins the rows that its client can do
#   --alone      RingMQ only                            --no-docs    leave docs/performance.md as it is
#   --lock FILE  hold this lock during each run, for machines on which others measure too
#
# Needs JDK 17 and Maven for the original and Kafka, Go for NATS, and an iggy-server on the PATH. A side that is not to be had
# is skipped, and the output says so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

rounds=5 secs=5 warm=2 data=target/bench-data pin= shards=$(nproc) memory=1GiB flush=ASYNC_FLUSH
peers=original,kafka,nats,iggy docs=1 lock=
command_line="bench/compare.sh $*"
rows=()
while [ $# -gt 0 ]; do
  case "$1" in
    --pin) pin=1 && shift && continue ;;
    --alone) peers=none && shift && continue ;;
    --no-docs) docs= && shift && continue ;;
    --*) [ $# -gt 1 ] || { sed -n '2,19p' "${BASH_SOURCE[0]}" >&2; exit 2; } ;;
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
    --peers) peers=$2 ;;
    [0-9]*) rows+=("$1") && shift && continue ;;
    *) sed -n '2,19p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
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
# Of each side that was started: its processes, the one that counts as the broker, and where clients find it.
declare -A pids=() broker=() address=() acknowledges=()

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
  # shellcheck disable=SC2068
  end_of ${pids[@]}
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

start_ours() { # flush [memory]
  free_ports
  env -u RINGMQ_BIN "${cpus[@]}" "$target/release/ringmq" standalone --store "$work/ours-$1" --bind 127.0.0.1 --namesrv-port "$base" --port $((base + 3)) \
    --shards "$shards" --memory "${2:-$memory}" --set "flushDiskType=$1" >>"$log" 2>&1 &
  pids[ours]=$! broker[ours]=$! address[ours]=127.0.0.1:$base
  await "${pids[ours]}" $((base + 3)) RingMQ
  sleep 1
}

stop_ours() {
  # shellcheck disable=SC2086
  end_of ${pids[ours]}
  unset "pids[ours]"
  rm -rf "$work"/ours-*
}

tools() { # what tool...: whether they are there
  local what=$1 tool
  shift
  for tool in "$@"; do
    command -v "$tool" >/dev/null || { say "SKIPPED $what: there is no $tool"; return 1; }
  done
}

classes() { # what pom file: builds what the pom has, leaves its class path in the file
  mvn -q -B -f "$2" compile dependency:build-classpath -Dmdep.outputFile="$3" >>"$log" 2>&1 \
    || { say "SKIPPED $1: Maven could not fetch or build it; see $log"; return 1; }
}

start_original() {
  tools "Apache RocketMQ" java mvn || return 1
  local classpath=$target/original.classpath home=$work/original
  classes "Apache RocketMQ" bench/original/pom.xml "$classpath" || return 1
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
  pids[original]=$namesrv
  await "$namesrv" "$base" "the original's name server" || return 1
  "${cpus[@]}" "${java[@]}" -Xms4g -Xmx4g -XX:MaxDirectMemorySize=2g -XX:+UseG1GC -XX:G1HeapRegionSize=16m -XX:G1ReservePercent=25 \
    -XX:InitiatingHeapOccupancyPercent=30 -XX:SoftRefLRUPolicyMSPerMB=0 -XX:-UseLargePages \
    org.apache.rocketmq.broker.BrokerStartup -c "$home/broker.conf" >>"$log" 2>&1 &
  broker[original]=$! address[original]=127.0.0.1:$base
  pids[original]="$namesrv ${broker[original]}"
  await "${broker[original]}" $((base + 3)) "the original's broker" || return 1
  sleep 2
}

# Apache Kafka as it ships, broker and controller in one process. It acknowledges from the page cache.
start_kafka() {
  tools "Apache Kafka" java mvn || return 1
  local classpath=$target/kafka.classpath home=$work/kafka java
  classes "Apache Kafka" bench/peers/kafka/pom.xml "$classpath" || return 1
  free_ports
  mkdir -p "$home"
  # Like the original it is stopped again and again, and what a run leaves has to go soon.
  printf '%s\n' process.roles=broker,controller node.id=1 "controller.quorum.voters=1@127.0.0.1:$base" controller.listener.names=CONTROLLER \
    "listeners=PLAINTEXT://127.0.0.1:$((base + 3)),CONTROLLER://127.0.0.1:$base" "advertised.listeners=PLAINTEXT://127.0.0.1:$((base + 3))" \
    "log.dirs=$home/data" auto.create.topics.enable=false broker.session.timeout.ms=86400000 log.segment.delete.delay.ms=1000 >"$home/server.properties"
  java=(java -Xms1g -Xmx1g -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:InitiatingHeapOccupancyPercent=35 -cp "$(cat "$classpath")")
  "${java[@]}" kafka.tools.StorageTool format -t cmluZ21xLWJlbmNoLWthZg -c "$home/server.properties" >>"$log" 2>&1 \
    || { say "SKIPPED Apache Kafka: its store could not be made; see $log"; return 1; }
  "${cpus[@]}" "${java[@]}" kafka.Kafka "$home/server.properties" >>"$log" 2>&1 &
  pids[kafka]=$! broker[kafka]=$! address[kafka]=127.0.0.1:$((base + 3))
  await "${broker[kafka]}" $((base + 3)) "Apache Kafka" || return 1
  acknowledges[kafka]='page cache'
  generator_kafka=(java -Xmx512m -cp "bench/peers/kafka/target/classes:$(cat "$classpath")" bench.KafkaLoad)
}

# NATS JetStream as it ships. It acknowledges from the page cache.
start_nats() {
  tools NATS go || return 1
  local home=$work/nats bin
  mkdir -p bench/peers/nats/target
  bin=$(cd bench/peers/nats/target && pwd)
  { GOBIN=$bin go install "github.com/nats-io/nats-server/v2@v2.14.6" && go -C bench/peers/nats build -o "$bin/nats-load" .; } >>"$log" 2>&1 \
    || { say "SKIPPED NATS: Go could not fetch it; see $log"; return 1; }
  free_ports
  "${cpus[@]}" "$bin/nats-server" -js -sd "$home" -a 127.0.0.1 -p "$base" >>"$log" 2>&1 &
  pids[nats]=$! broker[nats]=$! address[nats]=nats://127.0.0.1:$base
  await "${broker[nats]}" "$base" NATS || return 1
  acknowledges[nats]='page cache'
  generator_nats=("$bin/nats-load")
}

# Apache Iggy as it ships, if somebody installed it. It acknowledges from its memory.
start_iggy() {
  tools "Apache Iggy" iggy-server || return 1
  local load=$target/iggy-load
  # One that is there is taken as it is: the client has to be of the server's version.
  [ -x "$load/release/iggy-load" ] || CARGO_TARGET_DIR=$load cargo build --release --manifest-path bench/peers/iggy/Cargo.toml >>"$log" 2>&1 \
    || { say "SKIPPED Apache Iggy: its client could not be built; see $log"; return 1; }
  free_ports
  env IGGY_ROOT_USERNAME=iggy IGGY_ROOT_PASSWORD=iggy "IGGY_SYSTEM_PATH=$work/iggy" "IGGY_TCP_ADDRESS=127.0.0.1:$base" IGGY_HTTP_ENABLED=false \
    IGGY_QUIC_ENABLED=false IGGY_WEBSOCKET_ENABLED=false "${cpus[@]}" iggy-server >>"$log" 2>&1 &
  pids[iggy]=$! broker[iggy]=$! address[iggy]=127.0.0.1:$base
  await "${broker[iggy]}" "$base" "Apache Iggy" || return 1
  acknowledges[iggy]=memory
  generator_iggy=("$load/release/iggy-load")
}

wake() { # side: the others rest
  local other
  for other in "${!pids[@]}"; do
    # shellcheck disable=SC2086
    [ "$other" = "$1" ] || signal STOP ${pids[$other]}
  done
  # shellcheck disable=SC2086
  signal CONT ${pids[$1]}
  sync
  sleep 1
}

# One run on one side. Name and label make up the table's row.
bench() { # side label verb...
  local side=$1 label=$2 out
  shift 2
  wake "$side"
  number=$((number + 1))
  out=$results/$(printf '%04d' "$number")
  case $side in
    ours | original)
      "$target/release/ringmq-bench" "$@" -n "${address[$side]}" --broker-pid "${broker[$side]}" --name "$label/$side" "${client[@]}" \
        --json "$out.json" --hlog "$out.hlog"
      ;;
    *)
      local -n generator=generator_$side
      timeout 300 "$target/release/ringmq-bench" peer --broker-pid "${broker[$side]}" --name "$label/$side" --flush "${acknowledges[$side]}" \
        --store "$work" --json "$out.json" -- ${pin:+taskset -c 1} "${generator[@]}" "$1" "${address[$side]}" "${@:2}"
      ;;
  esac >>"$log" 2>&1 || say "no result: $label on $side; see $log"
}

turn() { # side label verb...: bench, under the lock if there is one
  if [ -z "$lock" ]; then bench "$@"; return; fi
  exec 9>>"$lock"
  flock 9
  bench "$@"
  exec 9>&-
}

# All sides in turns. What a peer's generator has to do for the row is in peer_load; nothing if it cannot.
peer_load=()
both() { # label verb...
  local label=$1 side round topic
  shift
  for round in $(seq 1 "$rounds"); do
    for side in "${sides[@]}"; do
      topic=bench-$RANDOM$RANDOM
      case $side in
        ours | original)
          say "$label, round $round, $side"
          turn "$side" "$label" "$@" -t "$topic" --warm "$warm" --secs "$secs"
          ;;
        *)
          [ ${#peer_load[@]} -gt 0 ] || continue
          [ "$side/${peer_load[0]}" != iggy/end-to-end ] || continue # its consumer asks again and again, so its latency is the pause
          say "$label, round $round, $side"
          turn "$side" "$label" "${peer_load[0]}" "$topic" "${peer_load[@]:1}" "$warm" "$secs"
          ;;
      esac
    done
  done
  peer_load=()
}

ours_only() { # label verb...
  local sides=(ours)
  both "$@"
}

native() { # label verb...: ours and Iggy, whose wire is like our native one
  local all=("${sides[@]}") sides=() side
  for side in "${all[@]}"; do
    case $side in ours | iggy) sides+=("$side") ;; esac
  done
  both "$@"
}

drain() { # label seconds-of-fill mode
  local side round topic
  for round in $(seq 1 "$rounds"); do
    for side in "${sides[@]}"; do
      topic=bench-$RANDOM$RANDOM
      case $side in
        ours | original)
          say "$1, round $round, $side"
          turn "$side" "fill for $1" batchproducer -w 16 -t "$topic" --warm 0 --secs "$2"
          rm -f "$results/$(printf '%04d' "$number")".*
          turn "$side" "$1" consumer --mode "$3" -t "$topic"
          [ "$side" = original ] || turn "$side" "$1, native" consumer --protocol native --mode "$3" -t "$topic"
          ;;
        *)
          [ "$3" != cold ] || continue # a generator does not drop the page cache
          say "$1, round $round, $side"
          turn "$side" "fill for $1" fill "$topic" 1024 0 "$2"
          rm -f "$results/$(printf '%04d' "$number")".*
          turn "$side" "$1" pull "$topic"
          ;;
      esac
    done
  done
}

overload() {
  local side
  for side in "${sides[@]}"; do
    case $side in ours | original) ;; *) continue ;; esac
    say "14: overload, $side"
    wake "$side"
    "$target/release/ringmq-bench" overload -n "${address[$side]}" --broker-pid "${broker[$side]}" --secs $((2 * secs)) --json "$results/overload-$side.result" \
      >"$results/overload-$side.txt" 2>>"$log" || say "overload on $side ended with $?; see $log"
    sed 's/^/    /' "$results/overload-$side.txt"
  done
}

say "building"
cargo build --release >>"$log" 2>&1 || { tail -20 "$log"; exit 1; }
cargo build --release -p ringmq-bench >>"$log" 2>&1 || { tail -20 "$log"; exit 1; }
number=0
sides=()
for side in ${peers//,/ }; do
  case $side in
    original | kafka | nats | iggy) if "start_$side"; then sides+=("$side"); fi ;;
    none) ;;
    *) say "there is no peer $side" && exit 2 ;;
  esac
done
sides+=(ours)
start_ours SYNC_FLUSH
say "warming up ${sides[*]}"
for side in "${sides[@]}"; do
  case $side in
    ours | original) turn "$side" "warm-up" producer -w 64 -t "warm-$side" --warm 0 --secs $((4 * secs)) ;;
    *) turn "$side" "warm-up" publish "warm-$side" 64 0 $((4 * secs)) ;;
  esac
done
rm -f "$results"/*.json "$results"/*.hlog

for row in "${rows[@]}"; do
  # A row can write ten gigabytes; a full disk is refused, and that is no figure.
  stop_ours
  start_ours SYNC_FLUSH
  case $row in
    1) peer_load=(publish 64) && both "1: single sends, 64 in flight" producer -w 64 ;;
    2) peer_load=(publish 1024) && both "2: single sends, 1,024 in flight" producer -w 1024 ;;
    3) peer_load=(publish 1) && both "3: single sends, one in flight" producer -w 1 ;;
    4) both "4: batches of 32, 64 in flight" batchproducer -w 64 ;;
    5)
      peer_load=(publish 16x60)
      native "5: native, 60 records a frame (64 KiB), 16 in flight" batchproducer -b 60 -w 16 --protocol native
      peer_load=(publish 8x240)
      native "5: native, 240 records a frame (256 KiB), 8 in flight" batchproducer -b 240 -w 8 --protocol native
      ;;
    6)
      peer_load=(publish 1024)
      native "6: native, one record a frame, 1,024 in flight" producer -w 1024 --protocol native
      peer_load=(publish 1)
      native "6: native, one record a frame, one in flight" producer -w 1 --protocol native
      ;;
    7)
      stop_ours
      start_ours SYNC_FLUSH 6GiB
      drain "7: drain, hot" "$secs" catch-up
      ;;
    8) drain "8: drain, cold" $((12 * secs)) cold ;;
    9)
      peer_load=(end-to-end 1000)
      both "9: end to end at 1,000/s" end-to-end --rate 1000
      peer_load=(end-to-end 5000)
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
# shellcheck disable=SC2068
end_of ${pids[@]}
pids=()
"$target/release/ringmq" doctor --store "$work" >"$results/machine.txt" 2>&1 || true
"$target/release/ringmq-bench" floor --store "$work" >"$results/floor.txt" 2>&1 || true
cat "$results/floor.txt"
[ ! -e "$results/table.md" ] || cat "$results/table.md"
say "every run: $results"
if [ -n "$docs" ]; then
  mkdir -p docs
  {
    echo "# Performance"
    echo
    echo "Written by \`$command_line\` on $(date -u +%Y-%m-%d). Each figure is the median of $rounds runs of $secs s after $warm s of load; the"
    echo "sides take turns, and those that rest are stopped. RingMQ and the original are driven by the same client, \`ringmq-bench\`, over the"
    echo "remoting protocol with 1 KiB messages and 4 queues unless a row says otherwise, other brokers by their own clients (bench/peers;"
    echo "Kafka's makes batches of what is in flight). CPU-s are per million messages. A row in which others used more than 0.3 processors"
    echo "is marked with (!): repeat it on a quiet machine."
    echo
    cat "$results/table.md"
    echo
    echo "What a round trip costs here if a server does nothing but receive, flush and send (\`ringmq-bench floor\`):"
    echo
    sed -n 's/^/    /p' "$results/floor.txt" | sed "s|$work|DIR|; s/ *$//"
    echo
    echo "The machine after the runs, as \`ringmq doctor\` sees it:"
    echo
    sed -n 's/^/    /p' "$results/machine.txt" | sed "s|$work|DIR|; /tuning.README/d; s/ *$//"
  } >docs/performance.md
  say "docs/performance.md is written"
fi
