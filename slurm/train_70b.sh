#!/bin/bash
# Fine-tune Llama 2 70B: sbatch slurm/train_70b.sh [key=value ...]
# Edit these lines for your cluster; what is given to sbatch itself comes before them.
#SBATCH --partition=gpu
#SBATCH --nodes=2 --gpus-per-node=8
#SBATCH --cpus-per-task=64 --mem=0    # of each node
#SBATCH --time=2-00:00:00
# Not these: one task a node, which is asked to save ten minutes before the end, and goes on.
#SBATCH --ntasks-per-node=1 --requeue --open-mode=append --signal=USR2@600
#SBATCH --job-name=train_70b --output=%x-%j.log
PATH="$PWD/.venv/bin:$PATH"       # edit: module load, conda activate; what finds `python` on nodes
# What an allocation around this one may have left, which srun would take for its own.
unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_NTASKS_PER_GPU SLURM_CPUS_PER_GPU SLURM_GPUS_PER_TASK SLURM_GPUS

srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  bash -c 'trap "" USR2; exec python -P -m launch.node "$@"' - train llama2_70b "$@"
