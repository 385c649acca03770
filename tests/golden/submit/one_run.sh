# …
#SBATCH --job-name=superclip_vit-b-16_512m_bs16k
#SBATCH --nodes=4
#SBATCH --time=12:00:00
#SBATCH --output=/runs/superclip_vit-b-16_512m_bs16k/slurm-%j.out
#SBATCH --chdir=/
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --partition=big
#SBATCH --account=vision
#SBATCH --qos=long
#SBATCH '--constraint=a100&ib'
#SBATCH --exclude=node7
#SBATCH --gres=gpu:8
#SBATCH --signal=B:USR1@60        # this script gets SIGUSR1 a minute before the time is up
#SBATCH --requeue                 # SLURM starts the job again if a node dies, or another job takes its place
#SBATCH --open-mode=append
superclip=(/venv/bin/python -m openclip_superclip)
[ -z "${SUPERCLIP_CONTAINER:-}" ] || superclip=(superclip)
runs=(
    runs/superclip_vit-b-16_512m_bs16k
)
run="${runs[${SLURM_ARRAY_TASK_ID:-0}]}"
export SUPERCLIP_ENDED="$run/ended"
command=("${superclip[@]}" run "$run")
# …
