#!/usr/bin/env bash
# Other people's clients against RingMQ, or against any name server that NAMESRV_ADDR names.
#
#   tests/clients/run.sh                      all of them, against a node that this script starts and stops
#   tests/clients/run.sh python node-ali-ons  some of them
#   NAMESRV_ADDR=HOST:9876 tests/clients/run.sh java-4.9.8
#
# What there is: python, node-ali-ons, node-rocketmq, java-VERSION (default 4.3.2 4.9.8 5.1.4 5.3.3), spring, go, interop.
# The clients come from their registries into tests/clients/*/target, node_modules and so on, all of them ignored by git.
#   RINGMQ_BIN     the binary (default target/release/ringmq)
# A check whose tool or registry is missing is skipped with its name. Exit code 1 if something failed.
set -uo pipefail
exec </dev/null
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
binary=${RINGMQ_BIN:-${CARGO_TARGET_DIR:-$root/target}/release/ringmq}
unset RINGMQ_BIN # A variable that starts with RINGMQ_ is a configuration key to the broker.
work=$(mktemp -d -t ringmq-clients.XXXXXX)
passed=0 failed=0 skipped=0 node_pid=
export CHECK_WAIT_S=${CHECK_WAIT_S:-90}

cleanup() {
  [ -n "$node_pid" ] && kill "$node_pid" 2>/dev/null && wait "$node_pid" 2>/dev/null
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

have() { command -v "$1" >/dev/null 2>&1; }
skip() { # name why
  echo "SKIPPED $1: $2"
  skipped=$((skipped + 1))
}
port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start_node() {
  local base
  for _ in $(seq 1 200); do
    base=$((12000 + RANDOM % 20000))
    for port in "$base" $((base + 1)) $((base + 3)) $((base + 4)); do port_open "$port" && continue 2; done
    break
  done
  # On the disk of the repository: tmpfs may not take O_DIRECT.
  mkdir -p "$root/target/clients-test"
  rm -rf "$root/target/clients-test/store"
  "$binary" standalone --store "$root/target/clients-test/store" --bind 127.0.0.1 --namesrv-port "$base" --port $((base + 3)) \
    --memory 256M --set transactionTimeOut=3000 --set transactionCheckInterval=5000 >"$work/node.log" 2>&1 &
  node_pid=$!
  for _ in $(seq 1 300); do
    kill -0 "$node_pid" 2>/dev/null || break
    if port_open "$base" && port_open $((base + 3)); then
      export NAMESRV_ADDR=127.0.0.1:$base
      return 0
    fi
    sleep 0.1
  done
  cat "$work/node.log"
  return 1
}

# name command...: its lines "passed ..." and "FAILED ..." are the verdicts; a failure without such a line counts as one.
checks() {
  local name=$1 status p f
  shift
  # The clients write logs below the home directory.
  HOME=$work timeout 900 "$@" >"$work/output" 2>&1
  status=$?
  grep -E '^(passed|FAILED|SKIPPED) ' "$work/output"
  p=$(grep -c '^passed ' "$work/output")
  f=$(grep -c '^FAILED ' "$work/output")
  if [ "$status" != 0 ] || [ "$p" = 0 ]; then
    [ "$f" -gt 0 ] || { f=1; echo "FAILED  $name: exit code $status"; }
    grep -vE '^(passed|FAILED) ' "$work/output" | tail -60
  fi
  passed=$((passed + p)) failed=$((failed + f))
}

# Maven and npm keep their caches below the real home.
install() { "$@" >"$work/install" 2>&1 || { tail -5 "$work/install"; return 1; }; }

run_python() {
  local python venv=$here/python/venv
  for python in python3.11 python3 none; do have $python && break; done
  [ $python != none ] && [ "$(uname -m)" = x86_64 ] || { skip python "needs python3 on x86_64"; return; }
  # The wheel was made for any Python 3; its C++ library is inside.
  [ -x "$venv/bin/python" ] || install $python -m venv "$venv" || { skip python "no virtual environment"; return; }
  "$venv/bin/python" -c 'import rocketmq' 2>/dev/null || install "$venv/bin/pip" install rocketmq==0.4.4 || { skip python "no wheel rocketmq 0.4.4"; return; }
  checks python "$venv/bin/python" "$here/python/check.py"
}

run_node() { # client
  have node && have npm || { skip "node-$1" "needs node and npm"; return; }
  [ -d "$here/node/node_modules/$1" ] || install npm --prefix "$here/node" install --no-audit --no-fund --no-package-lock \
    || { skip "node-$1" "npm did not install it"; return; }
  checks "node-$1" node "$here/node/check.js" "$1"
}

run_java() { # version
  have mvn && have javac || { skip "java-$1" "needs a JDK and Maven"; return; }
  local new=None.java newer=None.java target=$here/java/target/$1
  case $1 in
    4.[3-6].*) new=Since47.java newer=Since5*.java ;;
    4.*) newer=Since5*.java ;;
  esac
  install mvn -q -B -f "$here/java/pom.xml" compile dependency:build-classpath -Dmdep.outputFile="$target/classpath" \
    -Drocketmq.version="$1" -Dskip=$new -Dskip.too=$newer || { skip "java-$1" "Maven did not build it"; return; }
  for encoding in JSON ROCKETMQ; do
    # Every check with JSON headers, the most important ones with binary headers too.
    local some=()
    [ $encoding = JSON ] || some=(everyWayToSendArrives orderlyConsumersSeeTheOrderOfAQueue thePullConsumerReadsAndCommits)
    checks "java-$1" java -Xmx512m -Duser.home="$work" -Dcheck.version="$1, $encoding" -Dcheck.wait="$CHECK_WAIT_S" -Drocketmq.serialize.type=$encoding \
      --add-opens java.base/java.nio=ALL-UNNAMED --add-opens java.base/sun.nio.ch=ALL-UNNAMED \
      -cp "$target/classes:$(cat "$target/classpath")" check.Main "${some[@]}"
  done
}

run_spring() {
  local dir=$root/examples/spring
  have mvn && have javac || { skip spring "needs a JDK and Maven"; return; }
  install mvn -q -B -f "$dir/pom.xml" compile dependency:build-classpath -Dmdep.outputFile="$dir/target/classpath" \
    || { skip spring "Maven did not build it"; return; }
  checks spring java -Xmx512m -Duser.home="$work" -Dcheck.wait="$CHECK_WAIT_S" -cp "$dir/target/classes:$(cat "$dir/target/classpath")" sample.Application
}

run_go() {
  local dir=$root/examples/go
  have go || { skip go "needs go"; return; }
  install go -C "$dir" mod download || { skip go "its modules could not be fetched"; return; }
  install go -C "$dir" build -o target/sample . || { echo "FAILED  go: it does not build"; failed=$((failed + 1)); return; }
  checks go "$dir/target/sample"
}

# Its processes are its own: NAMESRV_ADDR has no part in it.
run_interop() {
  have mvn && have javac && have python3 || { skip interop "needs a JDK, Maven and python3"; return; }
  local checked=5.3.3
  install mvn -q -B -f "$here/original/pom.xml" dependency:build-classpath -Dmdep.outputFile="$here/original/target/classpath" \
    && install mvn -q -B -f "$here/java/pom.xml" compile dependency:build-classpath -Dmdep.outputFile="$here/java/target/$checked/classpath" -Drocketmq.version=$checked \
    || { skip interop "Maven did not build it"; return; }
  mkdir -p "$root/target/clients-test"
  BINARY=$binary STORE=$root/target/clients-test/interop ORIGINAL=$(cat "$here/original/target/classpath") \
    CHECKS=$here/java/target/$checked/classes:$(cat "$here/java/target/$checked/classpath") checks interop bash "$here/interop.sh"
}

all=("$@")
[ ${#all[@]} -gt 0 ] || all=(python node-ali-ons node-rocketmq java-4.3.2 java-4.9.8 java-5.1.4 java-5.3.3 spring go interop)
if [ -z "${NAMESRV_ADDR:-}" ]; then
  [ -x "$binary" ] || { echo "there is no $binary: cargo build --release"; exit 1; }
  start_node || { echo "FAILED  the node did not start"; exit 1; }
fi
for one in "${all[@]}"; do
  echo "=== $one against $NAMESRV_ADDR"
  case $one in
    python) run_python ;;
    node-*) run_node "${one#node-}" ;;
    java-*) run_java "${one#java-}" ;;
    spring) run_spring ;;
    go) run_go ;;
    interop) run_interop ;;
    *) echo "unknown: $one"; exit 2 ;;
  esac
done
if [ -n "$node_pid" ] && ! kill -0 "$node_pid" 2>/dev/null; then
  echo "FAILED  the node ended"
  tail -5 "$work/node.log"
  failed=$((failed + 1))
fi
echo "$passed passed, $failed failed, $skipped skipped in $SECONDS s"
[ "$failed" = 0 ]
