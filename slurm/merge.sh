#!/bin/bash
# Adapter + base -> one model folder: sbatch slurm/merge.sh RUN
# Edit these lines for your cluster; what is given to sbatch itself comes before them.
#SBATCH --partition=cpu
#SBATCH --nodes=1
#SBATCH --cpus-per-task=16 --mem=32G
#SBATCH --time=8:00:00
# Not these: one task.
#SBATCH --ntasks-per-node=1 --requeue --open-mode=append
#SBATCH --job-name=merge --output=%x-%j.log
PATH="$PWD/.venv/bin:$PATH"       # edit: module load, conda activate; what finds `python` on nodes
# What an allocation around this one may have left, which srun would take for its own.
unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_NTASKS_PER_GPU SLURM_CPUS_PER_GPU SLURM_GPUS_PER_TASK SLURM_GPUS

srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  python -P -m launch.node merge "$@"
