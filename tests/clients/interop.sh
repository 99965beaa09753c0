#!/usr/bin/env bash
# RingMQ and the original in one cluster: a name server of each, a broker of each, and both brokers at both name servers.
# Both name servers have to tell the same, to mqadmin and to clients that go through either. Called by run.sh, which sets
#   BINARY    ringmq
#   ORIGINAL  class path of original/pom.xml
#   CHECKS    class path of the Java checks
# Prints lines "passed ..." and "FAILED ..."; the exit code is 1 if one failed.
set -uo pipefail
exec </dev/null
work=$(mktemp -d -t ringmq-interop.XXXXXX)
store=${STORE:-$work/store} # has to take O_DIRECT
pids=() failed=0

cleanup() {
  [ ${#pids[@]} = 0 ] || kill "${pids[@]}" 2>/dev/null
  wait 2>/dev/null
  rm -rf "$work" "$store"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

verdict() { # status name
  if [ "$1" = 0 ]; then echo "passed  interop: $2"; else echo "FAILED  interop: $2"; failed=1; fi
}
port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
await_port() {
  for _ in $(seq 1 600); do port_open "$1" && return 0; sleep 0.2; done
  echo "nothing listens on $1"
  tail -5 "$work"/*.out
  exit 1
}
java_run() { # heap class arguments...: user.home moves the logs of RocketMQ
  local heap=$1
  shift
  exec java -Xmx"$heap" -XX:MaxDirectMemorySize=512m -Drocketmq.home.dir="$work" -Duser.home="$work" -Drocketmq.client.logUseSlf4j=false \
    --add-opens=java.base/java.nio=ALL-UNNAMED --add-opens=java.base/sun.nio.ch=ALL-UNNAMED \
    --add-exports=java.base/jdk.internal.ref=ALL-UNNAMED -cp "$ORIGINAL" "$@"
}
# Its logging library tells about itself on standard output, in lines with "|-".
mqadmin() { (java_run 256m org.apache.rocketmq.tools.command.MQAdminStartup "$@") 2>"$work/mqadmin.err" | grep -v -F '|-'; }

base=
for _ in $(seq 1 200); do
  base=$((12000 + RANDOM % 20000))
  for n in 0 1 8 9 10 11 18 19 20 21; do port_open $((base + n)) && continue 2; done
  break
done
ours=127.0.0.1:$base theirs=127.0.0.1:$((base + 1))

"$BINARY" namesrv --bind 127.0.0.1 --port "$base" --set kvConfigPath="$work/ours.json" >"$work/namesrv-ours.out" 2>&1 &
pids+=($!)
printf 'listenPort=%s\nbindAddress=127.0.0.1\nkvConfigPath=%s\nconfigStorePath=%s\n' $((base + 1)) "$work/kv.json" "$work/namesrv.properties" >"$work/namesrv.conf"
java_run 256m org.apache.rocketmq.namesrv.NamesrvStartup -c "$work/namesrv.conf" >"$work/namesrv-theirs.out" 2>&1 &
pids+=($!)
await_port "$base"
await_port $((base + 1))

"$BINARY" broker --bind 127.0.0.1 --port $((base + 10)) --store "$store" -n "$ours;$theirs" --memory 256M --set brokerName=broker-ours \
  --set transactionCheckInterval=5000 >"$work/broker-ours.out" 2>&1 &
pids+=($!)
cat >"$work/broker.conf" <<CONF
brokerClusterName=DefaultCluster
brokerName=broker-theirs
brokerId=0
brokerIP1=127.0.0.1
brokerIP2=127.0.0.1
listenPort=$((base + 20))
bindAddress=127.0.0.1
haListenPort=$((base + 21))
namesrvAddr=$ours;$theirs
storePathRootDir=$work/original
storePathCommitLog=$work/original/commitlog
mappedFileSizeCommitLog=67108864
mappedFileSizeTimerLog=16777216
maxHashSlotNum=50000
maxIndexNum=200000
diskMaxUsedSpaceRatio=95
enablePropertyFilter=true
transactionCheckInterval=5000
CONF
java_run 768m org.apache.rocketmq.broker.BrokerStartup -c "$work/broker.conf" >"$work/broker-theirs.out" 2>&1 &
pids+=($!)
await_port $((base + 10))
await_port $((base + 20))

# What of clusterList does not change by itself: cluster, broker, id, address.
cluster() { mqadmin clusterList -n "$1" | awk '$2 ~ /^broker-/ { print $1, $2, $3, $4 }' | sort; }
for _ in $(seq 1 30); do
  cluster "$ours" >"$work/cluster-ours"
  cluster "$theirs" >"$work/cluster-theirs"
  [ "$(wc -l <"$work/cluster-ours")" = 2 ] && cmp -s "$work/cluster-ours" "$work/cluster-theirs" && break
  sleep 2
done
cat "$work/cluster-ours"
cmp "$work/cluster-ours" "$work/cluster-theirs" && [ "$(wc -l <"$work/cluster-ours")" = 2 ]
verdict $? "mqadmin clusterList shows both brokers at both name servers"

mqadmin updateTopic -n "$ours" -c DefaultCluster -t interop -r 4 -w 4 >"$work/update.out"
# The order of brokers and of fields is the name server's own affair.
route() { mqadmin topicRoute -n "$1" -t interop | python3 -c 'import json, re, sys
text = re.sub(r"([{,]\s*)(\d+)\s*:", "\\1\"\\2\":", sys.stdin.read())
route = json.loads(text[text.index("{"):])
for key in ("brokerDatas", "queueDatas"): route[key].sort(key=lambda data: data["brokerName"])
print(json.dumps(route, sort_keys=True, indent=1))'; }
for _ in $(seq 1 20); do
  route "$ours" >"$work/route-ours" 2>"$work/route.err"
  route "$theirs" >"$work/route-theirs" 2>>"$work/route.err"
  [ "$(grep -c '"readQueueNums": 4' "$work/route-ours")" = 2 ] && cmp -s "$work/route-ours" "$work/route-theirs" && break
  sleep 2
done
diff "$work/route-ours" "$work/route-theirs" && [ "$(grep -c '"readQueueNums": 4' "$work/route-ours")" = 2 ]
verdict $? "mqadmin topicRoute tells the same at both name servers"

for address in "$ours" "$theirs"; do
  name="our name server"
  [ "$address" = "$ours" ] || name="the original's name server"
  NAMESRV_ADDR=$address java -Xmx512m -Duser.home="$work" -Dcheck.version="both brokers through $name" -Dcheck.wait="${CHECK_WAIT_S:-90}" \
    -cp "$CHECKS" check.Main everyWayToSendArrives orderlyConsumersSeeTheOrderOfAQueue aRefusedMessageComesAgainAndThenIsADeadLetter \
    twoConsumersShareTheQueues transactionsEndAsTheProducerSays aGroupGoesOnWhereItStopped || failed=1
done

# A message on each broker, seen through either name server.
for broker in broker-ours broker-theirs; do
  mqadmin sendMessage -n "$theirs" -t interop -p "for $broker" -b "$broker" -i 0 | grep -q SEND_OK
  verdict $? "mqadmin sendMessage to $broker"
done
for address in "$ours" "$theirs"; do
  mqadmin topicStatus -n "$address" -t interop | awk '/^broker-/ && $4 > 0 { print $1, $2, $4 }' | sort >"$work/status-$address"
done
cat "$work/status-$ours"
cmp "$work/status-$ours" "$work/status-$theirs" && [ "$(wc -l <"$work/status-$ours")" = 2 ]
verdict $? "mqadmin topicStatus sees the messages of both brokers through both name servers"

# A broker that leaves is gone from both at once.
kill "${pids[2]}" ; wait "${pids[2]}"
for _ in $(seq 1 15); do
  cluster "$ours" >"$work/cluster-ours"
  cluster "$theirs" >"$work/cluster-theirs"
  [ "$(wc -l <"$work/cluster-ours")" = 1 ] && cmp -s "$work/cluster-ours" "$work/cluster-theirs" && break
  sleep 1
done
cmp "$work/cluster-ours" "$work/cluster-theirs" && grep -q broker-theirs "$work/cluster-ours" && [ "$(wc -l <"$work/cluster-ours")" = 1 ]
verdict $? "our broker takes its leave of both name servers"
exit $failed
