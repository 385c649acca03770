#!/bin/bash
# What a job that runs one `superclip` command does, as those of `superclip study --slurm` that choose and report:
#
#     command_job.sh [--setup FILE] [--superclip FILE] [--container WORDS] COMMAND [options]
#SBATCH --time=24:00:00
#SBATCH --requeue                 # the commands keep what they have done, and go on
#SBATCH --open-mode=append

if [ "${1-}" = --setup ]; then
    source "$2" || { echo "command_job.sh: $2 has failed" >&2 && exit 1; }
    shift 2
fi
superclip=superclip
[ "${1-}" != --superclip ] || { superclip=$2 && shift 2; }
[ "${1-}" != --container ] || { CONTAINER=$2 && shift 2; }
exec srun --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --export=ALL ${CONTAINER:-} "$superclip" "$@"
