#!/usr/bin/env bash
# Starts N processes of one verb on this machine, joined by jax.distributed
# over loopback.
#
#   launch/local.sh N VERB [ARGUMENTS...]
#   launch/local.sh 2 train --config quickstart --workdir runs/two
#
# With JAX_PLATFORMS=cpu each process has ALIGN_JAX_CPU_DEVICES virtual devices
# (default 4); otherwise process i has GPU i. Process 0 writes to the terminal;
# the others to ALIGN_JAX_LOGS/process_I.log (default: a temporary folder, shown
# if one fails). Ctrl-C and SIGTERM stop every process, in training after a
# save. Exits with the first failing process's status, after ending the others.
set -u

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  sed -n '5,6s/^# *//p' "$0" >&2
  exit 2
fi
count=$1
shift
python=${PYTHON:-python3}
if [[ -z ${PYTHON:-} && -x $(dirname "$0")/../.venv/bin/python ]]; then
  python=$(dirname "$0")/../.venv/bin/python
fi
logs=${ALIGN_JAX_LOGS:-$(mktemp -d)}
mkdir -p "$logs"
port=${ALIGN_JAX_PORT:-$("$python" -c 'import socket
s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}

export ALIGN_JAX_COORDINATOR=127.0.0.1:$port
export ALIGN_JAX_PROCESSES=$count
if [[ ${JAX_PLATFORMS:-} == cpu ]]; then
  devices=${ALIGN_JAX_CPU_DEVICES:-4}
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
fi

pids=()
for ((i = 0; i < count; i++)); do
  [[ ${JAX_PLATFORMS:-} == cpu ]] || export CUDA_VISIBLE_DEVICES=$i
  if ((i == 0)); then
    ALIGN_JAX_PROCESS_ID=0 "$python" -m align_jax.cli.main "$@" &
  else
    ALIGN_JAX_PROCESS_ID=$i "$python" -m align_jax.cli.main "$@" \
      >"$logs/process_$i.log" 2>&1 &
  fi
  pids+=($!)
done

forward() { kill -s "$1" ${running[@]+"${running[@]}"} 2>/dev/null; }
# Processes in the background ignore SIGINT: for them Ctrl-C is SIGTERM too.
trap 'forward TERM' TERM INT

# One process gone means that the others wait for it for ever: end them.
status=0
deadline=0
running=("${pids[@]}")
while ((${#running[@]})); do
  left=()
  for pid in "${running[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      left+=("$pid")
      continue
    fi
    wait "$pid"
    code=$?
    if ((code != 0 && status == 0)); then
      status=$code
      deadline=$((SECONDS + 15))
    fi
  done
  running=(${left[@]+"${left[@]}"})
  if ((deadline > 0 && ${#running[@]})); then
    if ((SECONDS < deadline)); then forward TERM; else forward KILL; fi
  fi
  ((${#running[@]})) && sleep 0.3
done
if ((status != 0)); then
  for log in "$logs"/process_*.log; do
    [[ -f $log ]] && { echo "--- $log"; tail -n 20 "$log"; } >&2
  done
fi
exit "$status"
