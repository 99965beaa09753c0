#!/usr/bin/env bash
# RocketMQ's own integration tests (the artifact rocketmq-test, 5.5.0) against three brokers and a name server of ours.
#   tests/apache/run.sh                  all that can run against brokers of another process
#   tests/apache/run.sh 'BatchSendIT'    some classes, or Class#method
#   APACHE_SET='priorityOrderAsc=false popFromRetryProbabilityForPriority=100' tests/apache/run.sh 'PopPriorityIT'
# APACHE_SET has settings of the brokers. PopPriorityIT changes two of its own Java brokers as it goes; of ours a run has one
# value each: *[0] and *[2] of it are for priorityOrderAsc=true, *[1] and *[3] for false, and test_priority_consume_retry_as_highest
# and .._use_separate_retry_queue for popFromRetryProbabilityForPriority=100.
# Needs JDK 17 and Maven; RINGMQ_BIN (target/release/ringmq) is what is tested. Everything lands in target/apache-tests.
# Left out, since they start or stop Java brokers and look into them: container, dledger, autoswitchrole, statictopic, grpc, tls.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
bin=$(realpath "${RINGMQ_BIN:-../../target/release/ringmq}")
work=$(realpath -m "${APACHE_WORK:-../../target/apache-tests}")
port=${APACHE_PORT:-23100}
rm -rf "$work/store" && mkdir -p "$work/store"

pids=()
stop() {
  kill "${pids[@]}" 2>/dev/null || true
  wait 2>/dev/null || true
}
trap stop EXIT

wait_for() { # port
  for _ in $(seq 1 200); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return; fi
    sleep 0.1
  done
  echo "nothing listens at port $1; see $work" >&2
  exit 1
}

"$bin" namesrv --set "kvConfigPath=$work/store/kvConfig.json" --bind 127.0.0.1 --port "$port" >"$work/namesrv.log" 2>&1 &
pids+=($!)
wait_for "$port"
brokers=''
settings=()
for setting in ${APACHE_SET:-}; do settings+=(--set "$setting"); done
for number in 1 2 3; do
  at=$((port + 10 * number))
  # As IntegrationTestBase configures its brokers, where that differs from what both have by default.
  "$bin" broker --store "$work/store/broker-$number" --bind 127.0.0.1 --port "$at" -n "127.0.0.1:$port" --shards 1 --log-level ${APACHE_LOG_LEVEL:-info} \
    --memory 128MiB --set "brokerName=broker$number" --set brokerClusterName=apache --set brokerIP1=127.0.0.1 \
    --set recallMessageEnable=true "${settings[@]}" --set metricsPromExporterPort=$((at + 5)) >"$work/broker-$number.log" 2>&1 &
  pids+=($!)
  wait_for "$at"
  brokers+="${brokers:+,}broker$number=127.0.0.1:$at"
done

export NAMESRV_ADDR=127.0.0.1:$port CLUSTER=apache BROKERS=$brokers
mvn -q -B -Dstyle.color=never -DbuildDirectory="$work" test -Dsurefire.failIfNoSpecifiedTests=false \
  -Dtest="${1:-*IT,!*/container/*,!*/dledger/*,!*/autoswitchrole/*,!*/statictopic/*,!*/grpc/**,!*/tls/*}"
