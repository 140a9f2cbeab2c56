#!/usr/bin/env bash
# Renders a campaign inside a Slurm allocation: Ray on every node, lynx-render on the first.
#
#   sbatch --nodes=2 --gpus-per-node=8 cluster/slurm.sh MANIFEST [options of lynx-render]
#
# lynx-render must be on PATH on every node (LYNX_VENV names a virtual environment to activate), and the manifest,
# the weights and the output folder must lie where every node sees them under the same path. Five minutes before the
# time limit, or when preempted, Slurm signals USR1: lynx-render stops early with exit 75 and the job is queued again.
# Any other exit code of lynx-render is the job's.
#
#SBATCH --job-name=lynx-render
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

STOPPED_EARLY=75 # lynx-render's codes
UNUSABLE=3
START_SECONDS=${LYNX_START_SECONDS:-300} # for all nodes to join
STOP_SECONDS=${LYNX_STOP_SECONDS:-40}    # for Ray to end (it drains for 30 s at most) before it is killed
POLL_SECONDS=${LYNX_POLL_SECONDS:-2}

say() { echo "slurm.sh: $*" >&2; }
fail() {
    say "$*"
    exit "$UNUSABLE"
}

steps=()  # srun processes, one for the head and one for the workers
render='' # lynx-render's pid, while it runs
asked=''  # the first signal received
new=''    # whether one came since the last look

on_signal() {
    asked=${asked:-$1}
    new=yes
    if [[ -n $render ]]; then kill -s "$1" "$render" 2>/dev/null; fi
}
for name in USR1 TERM INT; do
    # shellcheck disable=SC2064 # the name is meant to be expanded now
    trap "on_signal $name" "$name"
done

alive() {
    local pid
    for pid in ${steps[@]+"${steps[@]}"}; do
        if kill -0 "$pid" 2>/dev/null; then return 0; fi
    done
    return 1
}

stop_ray() {
    local until=$((SECONDS + STOP_SECONDS))
    if alive; then kill -TERM "${steps[@]}" 2>/dev/null; fi
    while alive && ((SECONDS < until)); do sleep 0.2; done
    if alive; then kill -KILL "${steps[@]}" 2>/dev/null; fi
    steps=()
}
trap stop_ray EXIT

# After stopping Ray: Slurm ends this script as soon as it has taken the job back.
requeue_and_exit() {
    stop_ray
    say "stopped early; job $SLURM_JOB_ID goes back to the queue"
    scontrol requeue "$SLURM_JOB_ID" || say "scontrol could not requeue it; submit it again to go on"
    exit "$STOPPED_EARLY"
}

# Between the steps of starting: a signal that came before lynx-render ran.
heed_signals() {
    case $asked in
        USR1) requeue_and_exit ;;
        TERM) exit 143 ;;
        INT) exit 130 ;;
    esac
}

(($# > 0)) || {
    say "usage: sbatch cluster/slurm.sh MANIFEST [options of lynx-render]"
    exit 2
}
[[ -n ${SLURM_JOB_ID:-} && -n ${SLURM_JOB_NODELIST:-} ]] || fail "not inside a Slurm allocation: start it with sbatch"
if [[ -n ${LYNX_VENV:-} ]]; then
    # shellcheck disable=SC1091
    source "$LYNX_VENV/bin/activate" || fail "$LYNX_VENV: no virtual environment"
fi
for tool in srun scontrol ray lynx-render; do
    command -v "$tool" >/dev/null || fail "$tool is not on PATH"
done

# A password for this job's Ray alone: Ray listens on every interface of the node, and runs what it is sent.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# Since Slurm 22.05 srun does not take this over from sbatch by itself.
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
((${#nodes[@]} > 0)) || fail "scontrol names no node in $SLURM_JOB_NODELIST"
first=${nodes[0]} # where Slurm runs this script

# The node's own address, which the other nodes can reach: never a loopback one. LYNX_NODE_IP chooses among several.
ip=${LYNX_NODE_IP:-}
for candidate in $(hostname --ip-address 2>/dev/null) $(hostname -I 2>/dev/null); do
    if [[ -z $ip && $candidate =~ ^[0-9.]+$ && $candidate != 127.* ]]; then ip=$candidate; fi
done
[[ -n $ip ]] || fail "$first has no address of its own; set LYNX_NODE_IP"
port=${LYNX_RAY_PORT:-$((20000 + SLURM_JOB_ID % 10000))} # jobs that share a node do not share a port
head=$ip:$port

cpus=(--num-cpus="${SLURM_CPUS_PER_TASK:-$(nproc)}")
ray_options=(--object-store-memory=134217728 "${cpus[@]}" --block)
say "job $SLURM_JOB_ID: Ray on ${nodes[*]}, head $head"
srun --nodes=1 --ntasks=1 --nodelist="$first" \
    ray start --head --node-ip-address="$ip" --port="$port" --include-dashboard=false "${ray_options[@]}" &
steps+=($!)

until_=$((SECONDS + START_SECONDS))
# wait_for WHAT COMMAND...: polls until the command succeeds; gives up at the limit, or when a part of Ray ends.
wait_for() {
    local what=$1 pid
    shift
    until "$@"; do
        heed_signals
        for pid in "${steps[@]}"; do
            kill -0 "$pid" 2>/dev/null || fail "Ray ended while waiting for $what"
        done
        ((SECONDS < until_)) || fail "$what not there after $START_SECONDS s"
        sleep "$POLL_SECONDS"
    done
    heed_signals
}
head_is_up() { timeout 20 ray health-check --address "$head" >/dev/null 2>&1; }
all_joined() {
    local joined
    joined=$(timeout 20 ray status --address "$head" 2>/dev/null | sed -n '/^Active/,/^Pending/p' | grep -c 'node_')
    ((joined >= ${#nodes[@]}))
}

wait_for "the head on $first" head_is_up
if ((${#nodes[@]} > 1)); then
    others=$((${#nodes[@]} - 1))
    srun --nodes="$others" --ntasks="$others" --ntasks-per-node=1 --exclude="$first" \
        ray start --address="$head" "${ray_options[@]}" &
    steps+=($!)
    wait_for "all ${#nodes[@]} nodes" all_joined
fi

lynx-render "$@" --address "$head" &
render=$!
if [[ -n $asked ]]; then kill -s "$asked" "$render" 2>/dev/null; fi # it came in between
# A signal interrupts `wait`: ask again, until lynx-render itself has ended.
code=127
while :; do
    new=''
    wait "$render"
    got=$?
    if ((got != 127)); then code=$got; fi
    if [[ -z $new ]]; then break; fi
done
render=''

# 128 + USR1: the signal came before lynx-render was ready for it, so nothing was begun.
if ((code == STOPPED_EARLY || code == 128 + $(kill -l USR1))); then requeue_and_exit; fi
exit "$code"
