#!/bin/bash
# What a job that trains does: starts one `superclip run` a node, and is requeued where it was interrupted.
#
#     training_job.sh [WHERE] RECIPE [SHARDS] [options of `superclip run`]
#     training_job.sh [WHERE] --runs FOLDER… -- [options of `superclip run`]
#     training_job.sh [WHERE] --runs-in FILE -- [options of `superclip run`]
#
# --rehearse before RECIPE or --runs calls `superclip rehearse` in the place of `superclip run`.
#
# WHERE is [--setup FILE] [--superclip FILE] [--container WORDS]: bash to read first, and what srun is to start.
# `superclip submit` and `superclip study --slurm` send this file, with what they ask of SLURM on sbatch's command line;
# train.sbatch holds that itself and calls it.
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300       # this script is told five minutes before the time is up
#SBATCH --requeue                 # SLURM starts the job again where a node dies, or another job takes its place
#SBATCH --open-mode=append

if [ "${1-}" = --setup ]; then
    source "$2" || { echo "training_job.sh: $2 has failed" >&2 && exit 1; }
    shift 2
fi
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

# Where the ranks of all nodes meet: another port after each restart, and none that something listens on already.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + (SLURM_JOB_ID + 101 * ${SLURM_RESTART_COUNT:-0}) % 10000))
while (: <>"/dev/tcp/$MASTER_ADDR/$MASTER_PORT") 2>/dev/null; do
    echo "training_job.sh: port $MASTER_PORT of $MASTER_ADDR is taken; trying the next"
    MASTER_PORT=$((MASTER_PORT + 1))
done
export MASTER_ADDR MASTER_PORT
export SUPERCLIP_EXCLUDE=$PWD/.exclude-$SLURM_JOB_ID # where `superclip run` names a node on which it failed

# One `superclip run` a node, which starts a process for each of its GPUs. The first that fails ends them all. A step
# that asks for no number of CPUs has all that the job has on each node, however many these are. --export=ALL: what
# this script has, also where sbatch was told to hand on nothing (SBATCH_EXPORT=NONE).
srun --ntasks-per-node=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} --cpu-bind=none --export=ALL \
    --kill-on-bad-exit=1 ${CONTAINER:-} "$superclip" "$command" "$recipe" "$@" &
step=$! told=
trap 'told=$SECONDS; kill -USR1 $step' USR1 # srun hands it to every node; `superclip run` then stops and exits with 75
while kill -0 $step 2>/dev/null; do wait $step; done # a signal ends wait before srun has ended
wait $step
code=$?

# Prints the nodes that the job is to leave out from now on, as many as the partition can spare.
nodes_to_exclude() {
    local excluded number=0
    excluded=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.*ExcNodeList=\([^ ]*\).*/\1/p')
    [ "${excluded:-(null)}" = "(null)" ] && excluded= || number=$(scontrol show hostnames "$excluded" | wc -l)
    number=$((number + $(sort -u "$SUPERCLIP_EXCLUDE" | wc -l)))
    up=$(sinfo --noheader --Node --partition="$SLURM_JOB_PARTITION" --states=idle,allocated,mixed,completing \
        --format=%N | sort -u | wc -l)
    [ $((up - number)) -lt "$SLURM_JOB_NUM_NODES" ] ||
        echo "$excluded${excluded:+,}$(sort -u "$SUPERCLIP_EXCLUDE" | paste -sd,)"
}

requeue() {
    local exclude= try
    [[ $(scontrol show job "$SLURM_JOB_ID") == *" JobState=RUNNING "* ]] || return # SLURM has ended it
    [ ! -s "$SUPERCLIP_EXCLUDE" ] || exclude=$(nodes_to_exclude)
    rm -f "$SUPERCLIP_EXCLUDE"
    echo "training_job.sh: requeued, to resume from the last checkpoint${exclude:+, without $exclude}"
    trap '' TERM # with which SLURM ends this script, too
    scontrol requeue "$SLURM_JOB_ID"
    for try in {1..20}; do
        [ "$exclude" ] && ! scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=$exclude" 2>/dev/null || break
        sleep 0.5
    done
}

# 0 is finished, 1 failed, 75 asks for another start, and 137 is that of a `superclip run` that was killed. A job that is
# told as soon as it starts has no time to train, and would be requeued forever.
if [ $code -eq 75 ] || [ $code -eq 137 ] || { [ "${told:-0}" -gt 300 ] && [ $code -gt 1 ]; }; then
    requeue
fi
rm -f "$SUPERCLIP_EXCLUDE"
exit $code
