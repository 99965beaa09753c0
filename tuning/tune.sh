#!/usr/bin/env bash
# Settings of a machine for a broker, each with its way back. `ringmq doctor` says which of them would change anything here, and
# tuning/README.md what each of them moves.
#
#   tuning/tune.sh show                what each knob is now
#   tuning/tune.sh apply KNOB [ARG]    sets it, until the next boot; what was there before is kept
#   tuning/tune.sh undo KNOB|all       sets it back
#
# Knobs: governor; idle [MICROSECONDS]; haltpoll [NANOSECONDS] (of a virtual machine); scheduler DISK; diskirq DISK PROCESSOR;
# writecache DISK (only where the power cannot fail: see the README); mount DIR; hugepages; swappiness; backlog; nic INTERFACE (queues, interrupts, packet steering); memlock USER.
# isolcpus is a word on the kernel's command line: the README has it.
set -euo pipefail

root=${TUNE_ROOT:-}                            # tests have a /proc and /sys of their own
saved=${TUNE_STATE:-/var/lib/ringmq-tune}
die() { echo "tune.sh: $*" >&2; exit 1; }

# file value: writes it and keeps what was there (of several times the first). 1: the machine does not take it; nothing is kept.
put() {
  local file=$root$1 value=$2 keep=$saved/$knob now
  [ -e "$file" ] || { echo "tune.sh: $1 is not there: nothing to set on this machine" >&2; return 1; }
  # A choice is shown as `none [mq-deadline] kyber`.
  now=$(sed -E 's/.*\[([^]]*)\].*/\1/' "$file") && { printf '%s\n' "$value" >"$file"; } 2>/dev/null \
    || { echo "tune.sh: $1 does not take '$value'" >&2; return 1; }
  mkdir -p "$saved"
  grep -qsF "$1"$'\t' "$keep" || printf '%s\t%s\n' "$1" "$now" >>"$keep"
  echo "$1: $now -> $value"
}

# The mask of so many processors as rps_cpus wants it: groups of 32 bits with commas, in hexadecimal.
all_cpus_mask() {
  local n=$1 mask=
  while [ "$n" -gt 32 ]; do mask=,ffffffff$mask n=$((n - 32)); done
  printf '%x%s' $(((1 << n) - 1)) "$mask"
}

governor() { for file in "$root"/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do put "${file#"$root"}" performance; done; }

idle() { # microseconds: deeper states are switched off
  local limit=${1:-50} latency state
  for state in "$root"/sys/devices/system/cpu/cpu*/cpuidle/state*; do
    [ -e "$state/latency" ] || die "no idle states here: the host decides"
    read -r latency <"$state/latency"
    [ "$latency" -le "$limit" ] || put "${state#"$root"}/disable" 1
  done
}

haltpoll() { put /sys/module/haltpoll/parameters/guest_halt_poll_ns "${1:-200000}"; }

scheduler() { put "/sys/block/${1:?DISK}/queue/scheduler" none; }

diskirq() { # disk processor: where the ends of its writes are told
  local disk=${1:?DISK} cpu=${2:?PROCESSOR} path irq
  path=$(readlink -f "$root/sys/block/$disk") && [ -d "$path" ] || die "there is no disk $disk"
  while [ ! -d "$path/msi_irqs" ]; do
    path=${path%/*}
    [ -n "$path" ] && [ "$path" != "$root" ] || die "$disk has no interrupts of its own"
  done
  # The kernel keeps some of them where they are: those of a queue for each processor, which need no change.
  for irq in $(ls "$path/msi_irqs" | sort -n); do put "/proc/irq/$irq/smp_affinity_list" "$cpu" || continue; done
}

writecache() { put "/sys/block/${1:?DISK}/queue/write_cache" "write through"; }

hugepages() { put /sys/kernel/mm/transparent_hugepage/enabled madvise; }

swappiness() { put /proc/sys/vm/swappiness 1; }

backlog() {
  put /proc/sys/net/core/somaxconn 4096
  put /proc/sys/net/ipv4/tcp_max_syn_backlog 8192
}

mount_() { # directory: without discard and access times
  local target before
  target=$(findmnt -n -o TARGET -T "${1:?DIR}") || die "$1 is on no mount"
  before=$(findmnt -n -o OPTIONS -T "$1")
  mkdir -p "$saved"
  local back=
  case ",$before," in *,discard,*) back=discard ;; *) back=nodiscard ;; esac
  case ",$before," in *,noatime,*) back+=,noatime ;; *,relatime,*) back+=,relatime ;; *) back+=,strictatime ;; esac
  [ -e "$saved/mount" ] || printf '%s\t%s\n' "$target" "$back" >"$saved/mount"
  mount -o remount,noatime,nodiscard "$target"
  echo "$target: $before -> $(findmnt -n -o OPTIONS "$target")"
}

nic() { # interface
  local name=${1:?INTERFACE} cpus cpu=0 irq queue
  cpus=$(nproc)
  [ -e "$root/sys/class/net/$name/device" ] || die "$name is no interface with a device"
  if [ -z "$root" ] && command -v ethtool >/dev/null && ethtool -l "$name" >/dev/null 2>&1; then
    ethtool -L "$name" combined "$cpus" 2>/dev/null && echo "$name: $cpus queues (undo: ethtool -L $name combined N)" || true
  fi
  # One core for each queue's interrupt, in turns.
  for irq in $(ls "$root/sys/class/net/$name/device/msi_irqs" 2>/dev/null | sort -n); do
    [ -e "$root/proc/irq/$irq/smp_affinity_list" ] || continue
    # The kernel keeps some of them where they are.
    put "/proc/irq/$irq/smp_affinity_list" "$cpu" || continue
    cpu=$(((cpu + 1) % cpus))
  done
  # Fewer queues than cores: the kernel spreads the packets.
  local queues=("$root/sys/class/net/$name/queues"/rx-*)
  if [ "${#queues[@]}" -lt "$cpus" ]; then
    for queue in "${queues[@]}"; do put "${queue#"$root"}/rps_cpus" "$(all_cpus_mask "$cpus")"; done
  fi
  pgrep -x irqbalance >/dev/null && echo "irqbalance runs and will move the interrupts again: systemctl disable --now irqbalance" || true
}

memlock() { # user
  local user=${1:?USER} file=$root/etc/security/limits.d/ringmq.conf
  [ -e "$file" ] && die "$file is there already"
  mkdir -p "$(dirname "$file")" "$saved"
  printf '%s - memlock unlimited\n%s - nofile 1048576\n' "$user" "$user" >"$file"
  echo "${file#"$root"}" >"$saved/memlock"
  echo "$file: for the next login of $user"
}

undo() {
  knob=$1
  [ -e "$saved/$knob" ] || die "nothing was applied for $knob"
  case $knob in
    mount) while IFS=$'\t' read -r target options; do mount -o "remount,$options" "$target"; echo "$target: $options"; done <"$saved/mount" ;;
    memlock) rm -f "$root$(cat "$saved/memlock")" ;;
    *)
      while IFS=$'\t' read -r file value; do
        printf '%s\n' "$value" >"$root$file"
        echo "$file: $value"
      done <"$saved/$knob"
      ;;
  esac
  rm "$saved/$knob"
}

show() {
  local file
  for file in /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor /sys/block/*/queue/scheduler /sys/block/*/queue/write_cache \
    /sys/kernel/mm/transparent_hugepage/enabled /proc/sys/vm/swappiness /proc/sys/net/core/somaxconn /sys/class/net/*/queues/rx-*/rps_cpus; do
    for file in $root$file; do [ -r "$file" ] && printf '%-60s %s\n' "${file#"$root"}" "$(head -n 1 "$file")"; done
  done
  [ ! -d "$saved" ] || for file in "$saved"/*; do [ -e "$file" ] && echo "applied: ${file##*/}"; done
}

case ${1:-} in
  show) show ;;
  apply)
    knob=${2:?KNOB}
    case $knob in
      mount) mount_ "${3:-}" ;;
      governor | idle | haltpoll | scheduler | diskirq | writecache | hugepages | swappiness | backlog | nic | memlock) "$knob" "${@:3}" ;;
      *) die "no such knob: $knob (tuning/tune.sh without arguments lists them)" ;;
    esac
    ;;
  undo)
    if [ "${2:?KNOB}" = all ]; then
      for file in "$saved"/*; do [ -e "$file" ] && undo "${file##*/}"; done
    else
      undo "$2"
    fi
    ;;
  *) sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 2 ;;
esac
