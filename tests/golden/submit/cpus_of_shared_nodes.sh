# …
#SBATCH '--job-name=50% of it'
#SBATCH --nodes=1
#SBATCH --time=24:00:00
#SBATCH '--output=/runs/50%% of it/slurm-%j.out'
#SBATCH --chdir=/
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --overcommit
#SBATCH --signal=B:USR1@60        # this script gets SIGUSR1 a minute before the time is up
#SBATCH --requeue                 # SLURM starts the job again if a node dies, or another job takes its place
#SBATCH --open-mode=append
superclip=(/venv/bin/python -m openclip_superclip)
[ -z "${SUPERCLIP_CONTAINER:-}" ] || superclip=(superclip)
runs=(
    '/runs/50% of it'
)
run="${runs[${SLURM_ARRAY_TASK_ID:-0}]}"
export SUPERCLIP_ENDED="$run/ended"
command=("${superclip[@]}" run "$run")
# …
