#!/bin/bash
# One training run on any number of nodes:
#
#     sbatch --nodes=4 --gpus-per-node=8 slurm/train.sbatch RECIPE [SHARDS] [more options of `superclip run`]
#
# `superclip submit` sends this same file with its own lines filled in. Read it, copy it, change it; slurm/README.md
# says what a cluster needs. To look before it trains, add --dry-run.
#SBATCH --job-name=vit-b-16_512m
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --exclusive               # whole nodes, with all CPUs; on shared ones --cpus-per-task=CPUS_OF_A_NODE instead
#SBATCH --mem=0                   # and all memory
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300       # this script is told five minutes before the time is up
#SBATCH --requeue                 # SLURM starts the job again where a node dies, or another job takes its place
#SBATCH --open-mode=append
#SBATCH --output='runs/figure 4/slurm-%A_%a.out'
#SBATCH --chdir=/
#SBATCH --array=0-3%2

# What `superclip submit` was asked for.
CONTAINER='--container-image=/images/superclip.sqsh --container-mounts=/:/,/data,/scratch:/scratch --container-workdir=/'
runs=(
    'runs/figure 4/clip_vit-b-16_512m_bs1k'
    'runs/figure 4/clip_vit-b-16_512m_bs16k'
    'runs/figure 4/superclip_vit-b-16_512m_bs1k'
    'runs/figure 4/superclip_vit-b-16_512m_bs16k'
)
run=${runs[$SLURM_ARRAY_TASK_ID]}
set -- "$run/recipe.yaml" --out "$run"

# Where `superclip` is. In a container, CONTAINER holds what srun needs before the command:
#   source ~/venv/bin/activate
#   CONTAINER="--container-image=IMAGE --container-mounts=$PWD:$PWD,/data --container-workdir=$PWD"     (pyxis)
#   CONTAINER="apptainer exec --nv --bind /data IMAGE"

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
    --kill-on-bad-exit=1 ${CONTAINER:-} superclip run "$recipe" "$@" &
step=$! told=
trap 'told=$SECONDS; kill -USR1 $step' USR1 # srun hands it to every node; `superclip run` then stops and exits with 75
while kill -0 $step 2>/dev/null; do wait $step; done # a signal ends wait before srun has ended
wait $step
code=$?

# 0 is finished, 1 failed. A job that is told as soon as it starts has no time to train, and would be queued for ever.
if [ $code -eq 75 ] || { [ "${told:-0}" -gt 300 ] && [ $code -gt 1 ]; }; then
    echo "train.sbatch: back into the queue, to go on from the last checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
