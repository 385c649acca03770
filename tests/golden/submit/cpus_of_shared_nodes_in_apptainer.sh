#!/bin/bash
# Submits again what `superclip submit` has submitted; a run resumes from its last checkpoint.
sbatch --parsable \
    --job-name=b16 \
    --nodes=1 \
    --output=/runs/b16/slurm-%j.out \
    --chdir=/ \
    --cpus-per-task=16 \
    --mem=64G \
    /slurm/training_job.sh \
    --container 'apptainer exec --pwd / --bind /,/data superclip.sif' \
    --runs \
    /runs/b16 \
    -- --device cpu --nproc 4
