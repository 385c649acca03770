#!/bin/bash
# Submits again what `superclip submit` has submitted; a run resumes from its last checkpoint.
sbatch --parsable \
    --job-name=vit-b-16_512m \
    --nodes=2 \
    '--output=runs/figure 4/slurm-%A_%a.out' \
    --chdir=/ \
    --gpus-per-node=8 \
    --exclusive \
    --mem=0 \
    --array=0-3%2 \
    /slurm/training_job.sh \
    --container '--container-image=/images/superclip.sqsh --container-mounts=/:/,/data,/scratch:/scratch --container-workdir=/' \
    --runs \
    'runs/figure 4/clip_vit-b-16_512m_bs1k' \
    'runs/figure 4/clip_vit-b-16_512m_bs16k' \
    'runs/figure 4/superclip_vit-b-16_512m_bs1k' \
    'runs/figure 4/superclip_vit-b-16_512m_bs16k' \
    --
