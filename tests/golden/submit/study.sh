sbatch --parsable 'runs/figure 4/runs.sh'

# runs/figure 4/runs.sh
# …
#SBATCH '--job-name=figure 4-runs'
#SBATCH --nodes=2
#SBATCH --time=24:00:00
#SBATCH '--output=/runs/figure 4/slurm-%A_%a.out'
#SBATCH --chdir=/
#SBATCH --gpus-per-node=a100:8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --array=0-11%2
#SBATCH --signal=B:USR1@60        # this script gets SIGUSR1 a minute before the time is up
#SBATCH --requeue                 # SLURM starts the job again if a node dies, or another job takes its place
#SBATCH --open-mode=append
superclip=(/venv/bin/python -m openclip_superclip)
[ -z "${SUPERCLIP_CONTAINER:-}" ] || superclip=(superclip)
runs=(
    'runs/figure 4/runs/clip_global_batch_size-1024_seed0'
    'runs/figure 4/runs/superclip_global_batch_size-1024_seed0'
    'runs/figure 4/runs/clip_global_batch_size-2048_seed0'
    'runs/figure 4/runs/superclip_global_batch_size-2048_seed0'
    'runs/figure 4/runs/clip_global_batch_size-4096_seed0'
    'runs/figure 4/runs/superclip_global_batch_size-4096_seed0'
    'runs/figure 4/runs/clip_global_batch_size-8192_seed0'
    'runs/figure 4/runs/superclip_global_batch_size-8192_seed0'
    'runs/figure 4/runs/clip_global_batch_size-16384_seed0'
    'runs/figure 4/runs/superclip_global_batch_size-16384_seed0'
    'runs/figure 4/runs/clip_global_batch_size-32768_seed0'
    'runs/figure 4/runs/superclip_global_batch_size-32768_seed0'
)
run="${runs[${SLURM_ARRAY_TASK_ID:-0}]}"
export SUPERCLIP_ENDED="$run/ended"
command=("${superclip[@]}" run "$run")
# …
