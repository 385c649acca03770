#!/bin/bash
# What a job that runs one `superclip` command does, as those of `superclip study --slurm` that measure:
#
#     command_job.sh [--superclip FILE] [--container WORDS] COMMAND [options]
#SBATCH --time=24:00:00
#SBATCH --requeue                 # the commands keep what they have done, and go on
#SBATCH --open-mode=append

superclip=superclip
[ "${1-}" != --superclip ] || { superclip=$2 && shift 2; }
[ "${1-}" != --container ] || { CONTAINER=$2 && shift 2; }
exec srun --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" ${CONTAINER:-} "$superclip" "$@"
