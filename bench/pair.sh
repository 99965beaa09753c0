#!/usr/bin/env bash
# What replication costs: a single broker and a pair side by side, in network namespaces, in turns.
#
#   bench/pair.sh [ROUNDS]            default 3; needs root and ip
#   RINGMQ_BIN, RINGMQ_BENCH_BIN      binaries (default target/release/...)
#   PAIR_CASES                        requests in flight, or rNUMBER for so many a second (default "1 64 r20000")
#   PAIR_DELAY                        e.g. 0.5ms, by `tc netem` each way between the pair (default: none)
#   PAIR_DATA                         parent of the stores (default target); PAIR_SLAVE_DATA: of the slaves' stores
#   ORIGINAL_CLASSPATH                classpath of Apache RocketMQ's broker and name server: the same with ASYNC_MASTER and SYNC_MASTER
#   ORIGINAL_HEAP                     of each of its brokers (default 1g)
# Master and single broker share a namespace, the slave has its own, so has the load. All of them flush every message.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ringmq=$(realpath "${RINGMQ_BIN:-$root/target/release/ringmq}")
bench=$(realpath "${RINGMQ_BENCH_BIN:-$root/target/release/ringmq-bench}")
unset RINGMQ_BIN RINGMQ_BENCH_BIN # A variable that starts with RINGMQ_ is a configuration key to the broker.
rounds=${1:-3} cases=${PAIR_CASES:-1 64 r20000} heap=${ORIGINAL_HEAP:-1g}
mkdir -p "${PAIR_DATA:-$root/target}" "${PAIR_SLAVE_DATA:-${PAIR_DATA:-$root/target}}"
data=$(mktemp -d -p "${PAIR_DATA:-$root/target}" pair.XXXXXX)
slave_data=$(mktemp -d -p "${PAIR_SLAVE_DATA:-${PAIR_DATA:-$root/target}}" pair.XXXXXX)
id=rmqpair-$$
pids=()

cleanup() {
  kill -9 "${pids[@]}" 2>/dev/null || true
  wait 2>/dev/null || true
  for space in a b c hub; do ip netns del "$id-$space" 2>/dev/null || true; done
  rm -rf "$data" "$slave_data"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
inside() { local space=$id-$1; shift; ip netns exec "$space" "$@"; }
start() { # space name command...: in the background
  local space=$1 name=$2
  shift 2
  ip netns exec "$id-$space" "$@" >"$data/$name.log" 2>&1 </dev/null &
  pids+=($!)
  declare -g "pid_$name=$!"
}
await() { # space name address port
  for _ in $(seq 1 600); do
    inside "$1" bash -c "exec 3<>/dev/tcp/$3/$4" 2>/dev/null && return
    sleep 0.1
  done
  tail -20 "$data/$2.log"
  echo "$2 does not listen" >&2
  exit 1
}

for space in a b c hub; do ip netns add "$id-$space"; done
ip -n "$id-hub" link add br0 type bridge
ip -n "$id-hub" link set br0 up
number=11
for space in a b c; do
  ip -n "$id-hub" link add "port-$space" type veth peer name eth0 netns "$id-$space"
  ip -n "$id-hub" link set "port-$space" master br0 up
  ip -n "$id-$space" link set lo up
  ip -n "$id-$space" addr add "10.78.0.$number/24" dev eth0
  ip -n "$id-$space" link set eth0 up
  number=$((number + 1))
done
if [ -n "${PAIR_DELAY:-}" ]; then
  inside b tc qdisc add dev eth0 root netem delay "$PAIR_DELAY"
  ip netns exec "$id-hub" tc qdisc add dev port-b root netem delay "$PAIR_DELAY"
fi

head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$data/secret"
chmod 600 "$data/secret"
ours() { # space name port host store settings...
  local space=$1 name=$2 port=$3 host=$4 store=$5 settings=()
  shift 5
  for setting in "$@"; do settings+=(--set "$setting"); done
  start "$space" "$name" "$ringmq" broker -n 10.78.0.13:9876 --bind "$host" --port "$port" --store "$store" --shards 1 --memory 1G \
    --set "haSecretFile=$data/secret" --set "metricsPromExporterPort=$((port + 5))" "${settings[@]}"
  await "$space" "$name" "$host" "$port"
}
start c namesrv "$ringmq" namesrv --bind 10.78.0.13 --port 9876 --set "kvConfigPath=$data/kv.json"
await c namesrv 10.78.0.13 9876
ours a single 10911 10.78.0.11 "$data/single" brokerName=single
ours a master 11911 10.78.0.11 "$data/master" brokerName=pair brokerRole=SYNC_MASTER
ours b slave 11911 10.78.0.12 "$slave_data/slave" brokerName=pair brokerRole=SLAVE brokerId=1 haMasterAddress=10.78.0.11:11912
# side, broker, pids
sides=("RingMQ, single|10.78.0.11:10911|$pid_single" "RingMQ, SYNC_MASTER with a slave|10.78.0.11:11911|$pid_master,$pid_slave")

if [ -n "${ORIGINAL_CLASSPATH:-}" ]; then
  java() { # space name heap class file
    start "$1" "$2" java -Xms"$3" -Xmx"$3" -XX:MaxDirectMemorySize=1g -XX:+UseG1GC -Duser.home="$data" -Drocketmq.home.dir="$data" \
      --add-opens=java.base/java.nio=ALL-UNNAMED --add-opens=java.base/sun.nio.ch=ALL-UNNAMED \
      --add-exports=java.base/jdk.internal.ref=ALL-UNNAMED -cp "$ORIGINAL_CLASSPATH" "$4" -c "$5"
  }
  original() { # space name port host store lines...
    local space=$1 name=$2 port=$3 host=$4 store=$5
    shift 5
    printf '%s\n' "listenPort=$port" "haListenPort=$((port + 1))" "brokerIP1=$host" "brokerIP2=$host" "bindAddress=$host" \
      brokerClusterName=original namesrvAddr=10.78.0.13:19876 flushDiskType=SYNC_FLUSH "storePathRootDir=$store" \
      "storePathCommitLog=$store/commitlog" diskMaxUsedSpaceRatio=95 waitTimeMillsInSendQueue=2000 autoCreateTopicEnable=true \
      mappedFileSizeCommitLog=268435456 "$@" >"$data/$name.conf"
    java "$space" "$name" "$heap" org.apache.rocketmq.broker.BrokerStartup "$data/$name.conf"
    await "$space" "$name" "$host" "$port"
  }
  printf '%s\n' listenPort=19876 bindAddress=10.78.0.13 "kvConfigPath=$data/kv2.json" >"$data/original_namesrv.conf"
  java c original_namesrv 128m org.apache.rocketmq.namesrv.NamesrvStartup "$data/original_namesrv.conf"
  await c original_namesrv 10.78.0.13 19876
  original a original_single 20911 10.78.0.11 "$data/original-single" brokerName=original-single brokerId=0 brokerRole=ASYNC_MASTER
  original a original_master 21911 10.78.0.11 "$data/original-master" brokerName=original-pair brokerId=0 brokerRole=SYNC_MASTER inSyncReplicas=2
  original b original_slave 21911 10.78.0.12 "$slave_data/original-slave" brokerName=original-pair brokerId=1 brokerRole=SLAVE
  sides+=("RocketMQ, ASYNC_MASTER alone|10.78.0.11:20911|$pid_original_single"
    "RocketMQ, SYNC_MASTER with a slave|10.78.0.11:21911|$pid_original_master,$pid_original_slave")
fi
sleep 5

echo "$(date -u +%F), $(uname -sr), $(nproc) cores, load $(cut -d' ' -f1-3 /proc/loadavg); delay between the pair: ${PAIR_DELAY:-none}"
warm=10 # the first time for JVMs, which compile what they run
for round in $(seq 0 "$rounds"); do
  for case in $cases; do
    case $case in
      r*) load=(--rate "${case#r}") what="${case#r} a second" ;;
      *) load=(-w "$case") what="$case in flight" ;;
    esac
    for side in "${sides[@]}"; do
      IFS='|' read -r name address pid <<<"$side"
      [ "$round" = 0 ] || warm=2
      inside c "$bench" producer --broker "$address" --broker-pid "$pid" "${load[@]}" --warm "$warm" --secs 5 --name "$what/$name" \
        --json "$data/result-$round-$case-${address##*:}.json" >"$data/last.txt" 2>&1 || { tail -20 "$data/last.txt"; exit 1; }
      grep -E '[1-9][0-9]* errors' "$data/last.txt" || true
    done
  done
  # The first round is for warming up.
  [ "$round" != 0 ] || rm -f "$data"/result-0-*.json
done
"$bench" table "$data"/result-*.json
