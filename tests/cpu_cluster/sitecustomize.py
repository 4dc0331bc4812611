"""For tests alone, on PYTHONPATH: the CPUs of a test cluster shard as GPUs do.

Every Python process reads it first, ranks included. Sharding strategies are not refused for want
of a GPU, and accelerate runs FSDP2 on CPU ranks (`tests/cpu_fsdp.py`).
"""

import os
import sys
from pathlib import Path

import pressroom.gpus

pressroom.gpus.needs_gpu = lambda recipe: []

if "ACCELERATE_USE_FSDP" in os.environ and "RANK" in os.environ:
    sys.path.append(str(Path(__file__).parents[1]))
    import cpu_fsdp

    cpu_fsdp.install()
