"""A recipe's training: on this machine or, under SLURM, on all nodes of a job."""
