"""What the server of `ranks.py` imports before it forks: it must start no threads."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"

import deepspeed.comm.torch  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
import trl.trainer.sft_trainer  # noqa: F401

import train.sft  # noqa: F401
