# A pair of brokers, a controller and a name server on loopback, for the scripts beside this one. They set $binary and $work.

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

# Sets namesrv and controller, and the ports of the brokers 1 and 2.
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

start_pair() {
  "$binary" namesrv --set "kvConfigPath=$work/kv.json" --bind 127.0.0.1 --port "$base" >"$work/namesrv.log" 2>&1 &
  pids[namesrv]=$!
  "$binary" controller --bind 127.0.0.1 --port $((base + 2)) --store "$work/controller" --id n0 --peers "n0-$controller" >"$work/controller.log" 2>&1 &
  pids[controller]=$!
  await "the controller" 30 port_open $((base + 2))
  start_broker 1
  await "the first broker" 30 port_open "${ports[1]}"
  start_broker 2
  await "two brokers in sync" 60 in_sync 2
}

# kill -9 of whoever is the master; its number stays in $victim.
kill_master() {
  local port
  port=$(master)
  victim=1
  [ "$port" = "${ports[2]}" ] && victim=2
  kill -9 "${pids[$victim]}"
  wait "${pids[$victim]}" 2>/dev/null
}
