runs=$(sbatch --parsable 'runs/figure 4/runs.sh')
report=$(sbatch --parsable --dependency=afterany:${runs%%;*} --kill-on-invalid-dep=yes 'runs/figure 4/report.sh')

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
set -o pipefail
superclip=(/venv/bin/python -m openclip_superclip)
[ -z "${SUPERCLIP_CONTAINER:-}" ] || superclip=(superclip)
runs=(
    'runs/figure 4/runs/clip_global_batch_size-1024_lr-0.00025_warmup-8000_seed0'
    'runs/figure 4/runs/superclip_global_batch_size-1024_lr-0.00025_warmup-8000_seed0'
    'runs/figure 4/runs/clip_global_batch_size-2048_lr-0.000354_warmup-4000_seed0'
    'runs/figure 4/runs/superclip_global_batch_size-2048_lr-0.000354_warmup-4000_seed0'
    'runs/figure 4/runs/clip_global_batch_size-4096_lr-0.0005_warmup-2000_seed0'
    'runs/figure 4/runs/superclip_global_batch_size-4096_lr-0.0005_warmup-2000_seed0'
    'runs/figure 4/runs/clip_global_batch_size-8192_lr-0.000707_warmup-1000_seed0'
    'runs/figure 4/runs/superclip_global_batch_size-8192_lr-0.000707_warmup-1000_seed0'
    'runs/figure 4/runs/clip_seed0'
    'runs/figure 4/runs/superclip_seed0'
    'runs/figure 4/runs/clip_global_batch_size-32768_lr-0.00141_warmup-250_seed0'
    'runs/figure 4/runs/superclip_global_batch_size-32768_lr-0.00141_warmup-250_seed0'
)
run="${runs[${SLURM_ARRAY_TASK_ID:-0}]}"
command=("${superclip[@]}" run "$run")
# …

# runs/figure 4/report.sh
#!/bin/bash
#SBATCH '--job-name=figure 4-report'
#SBATCH --nodes=1
#SBATCH --time=24:00:00
#SBATCH '--output=/runs/figure 4/slurm-%j.out'
#SBATCH --chdir=/
#SBATCH --gpus-per-node=a100:1
#SBATCH --cpus-per-task=1
#SBATCH --requeue
#SBATCH --open-mode=append
superclip=(/venv/bin/python -m openclip_superclip)
[ -z "${SUPERCLIP_CONTAINER:-}" ] || superclip=(superclip)
eval "container=(${SUPERCLIP_CONTAINER:-})"
exec srun --nodes=1 --ntasks=1 --cpus-per-task=1 --export=ALL "${container[@]}" "${superclip[@]}" study datacomp_batch_size --out 'runs/figure 4' --device cuda --set flags.imagenet-val=/imagenet/val --only report
