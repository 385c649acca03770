#!/bin/bash
# What `superclip study --slurm` has submitted; the same command submits what is left of the study.
runs=$(sbatch --parsable \
    '--job-name=figure 4-runs' \
    --nodes=2 \
    '--output=runs/figure 4/slurm-%A_%a.out' \
    --chdir=/ \
    --gpus-per-node=8 \
    --exclusive \
    --mem=0 \
    --array=0-11%2 \
    /slurm/training_job.sh \
    --container '--container-image=/images/superclip.sqsh --container-mounts=/:/,/data,/scratch:/scratch --container-workdir=/' \
    --runs \
    'runs/figure 4/runs/clip_global_batch_size-1024_lr-0.00025_warmup-8000_seed0' \
    'runs/figure 4/runs/superclip_global_batch_size-1024_lr-0.00025_warmup-8000_seed0' \
    'runs/figure 4/runs/clip_global_batch_size-2048_lr-0.000354_warmup-4000_seed0' \
    'runs/figure 4/runs/superclip_global_batch_size-2048_lr-0.000354_warmup-4000_seed0' \
    'runs/figure 4/runs/clip_global_batch_size-4096_lr-0.0005_warmup-2000_seed0' \
    'runs/figure 4/runs/superclip_global_batch_size-4096_lr-0.0005_warmup-2000_seed0' \
    'runs/figure 4/runs/clip_global_batch_size-8192_lr-0.000707_warmup-1000_seed0' \
    'runs/figure 4/runs/superclip_global_batch_size-8192_lr-0.000707_warmup-1000_seed0' \
    'runs/figure 4/runs/clip_seed0' \
    'runs/figure 4/runs/superclip_seed0' \
    'runs/figure 4/runs/clip_global_batch_size-32768_lr-0.00141_warmup-250_seed0' \
    'runs/figure 4/runs/superclip_global_batch_size-32768_lr-0.00141_warmup-250_seed0' \
    --)
report=$(sbatch --parsable \
    '--job-name=figure 4-report' \
    --nodes=1 \
    '--output=runs/figure 4/slurm-%j.out' \
    --chdir=/ \
    --gpus-per-node=1 \
    --cpus-per-task=1 \
    "--dependency=afterany:${runs%%;*}" \
    --kill-on-invalid-dep=yes \
    /slurm/command_job.sh \
    --container '--container-image=/images/superclip.sqsh --container-mounts=/:/,/data,/scratch:/scratch --container-workdir=/' \
    study datacomp_batch_size --out 'runs/figure 4' --device cuda --set flags.imagenet-val=/imagenet/val --only report)
