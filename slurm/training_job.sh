#!/bin/bash
# What a job that trains does: starts one `superclip run` a node, and is requeued where it was interrupted.
#
#     training_job.sh [--superclip FILE] [--container WORDS] RECIPE [SHARDS] [options of `superclip run`]
#     training_job.sh [--superclip FILE] [--container WORDS] --runs FOLDER… -- [options of `superclip run`]
#     training_job.sh [--superclip FILE] [--container WORDS] --runs-in FILE -- [options of `superclip run`]
#
# --rehearse before RECIPE or --runs calls `superclip rehearse` in the place of `superclip run`.
#
# `superclip submit` and `superclip study --slurm` send this file, with what they ask of SLURM on sbatch's command line;
# train.sbatch holds that itself and calls it.
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300       # this script is told five minutes before the time is up
#SBATCH --requeue                 # SLURM starts the job again where a node dies, or another job takes its place
#SBATCH --open-mode=append

superclip=superclip
[ "${1-}" != --superclip ] || { superclip=$2 && shift 2; }
[ "${1-}" != --container ] || { CONTAINER=$2 && shift 2; }
command=run
[ "${1-}" != --rehearse ] || { command=rehearse && shift; }

# Folders that hold their recipes, or a file of them, a line each: a task of an array takes its own.
if [ "${1-}" = --runs-in ]; then
    run=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$2") || exit
    [ -n "$run" ] || { echo "training_job.sh: $2 holds fewer runs: nothing is left to train" && exit 0; }
    set -- "$run/recipe.yaml" --out "$run" "${@:4}"
elif [ "${1-}" = --runs ]; then
    runs=()
    while shift && [ "$1" != -- ]; do runs+=("$1"); done
    run=${runs[${SLURM_ARRAY_TASK_ID:-0}]}
    set -- "$run/recipe.yaml" --out "$run" "${@:2}"
fi

# RECIPE SHARDS … means RECIPE --data SHARDS …
recipe=${1:?"expected: sbatch slurm/train.sbatch RECIPE [SHARDS] [options]"}
shift
[[ ${1:--} == -* ]] || set -- --data "$@"

# Where the ranks of all nodes meet.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT

# One `superclip run` a node, which starts a process for each of its GPUs. The first that fails ends them all.
srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" --cpu-bind=none \
    --kill-on-bad-exit=1 ${CONTAINER:-} "$superclip" "$command" "$recipe" "$@" &
step=$! told=
trap 'told=$SECONDS; kill -USR1 $step' USR1 # srun hands it to every node; `superclip run` then stops and exits with 75
while kill -0 $step 2>/dev/null; do wait $step; done # a signal ends wait before srun has ended
wait $step
code=$?

# 0 is finished, 1 failed. A job that is told as soon as it starts has no time to train, and would be requeued forever.
if [ $code -eq 75 ] || { [ "${told:-0}" -gt 300 ] && [ $code -gt 1 ]; }; then
    echo "training_job.sh: requeued, to resume from the last checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
