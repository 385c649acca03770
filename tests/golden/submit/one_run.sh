#!/bin/bash
# Submits again what `superclip submit` has submitted; a run resumes from its last checkpoint.
sbatch --parsable \
    --job-name=superclip_vit-b-16_512m_bs16k \
    --nodes=4 \
    --output=runs/superclip_vit-b-16_512m_bs16k/slurm-%j.out \
    --chdir=/ \
    --exclusive \
    --mem=0 \
    --partition=big \
    --account=vision \
    --qos=long \
    --time=12:00:00 \
    '--constraint=a100&ib' \
    --exclude=node7 \
    --gres=gpu:8 \
    /slurm/training_job.sh \
    --superclip /venv/bin/superclip \
    --runs \
    runs/superclip_vit-b-16_512m_bs16k \
    -- --data '/data/{00000..41455}.tar' --gpu-batch-max 256 --set lr=5e-4
