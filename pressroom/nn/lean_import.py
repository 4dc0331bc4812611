"""bitsandbytes without PyTorch's compiler: an eighth of the time that a rank's imports take.

It compiles a few functions for devices that it has no kernels for, and imports the compiler to do
so. Here they stay as they are written; who compiles something later imports the compiler then.
"""

from collections.abc import Callable
from typing import Any

import torch


def import_bitsandbytes() -> None:
    """Import it so; before anything else does."""
    compile_as_ever = torch.compile
    vars(torch)["compile"] = _as_written
    try:
        import bitsandbytes  # noqa: F401
    finally:
        vars(torch)["compile"] = compile_as_ever


def _as_written(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    return function or (lambda function: function)
