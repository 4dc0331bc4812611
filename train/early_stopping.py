"""Early stopping: training ends when the held-out loss has not fallen for some evaluations.

Decided from the evaluations that the state keeps, and from nothing else: every rank has the same,
and a resumed run has them from its checkpoint. Knows nothing of how they are made.
"""

import math
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from pressroom.console import log


def is_over(losses: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` evaluations have brought no new lowest loss.

    >>> is_over([3.0, 2.0, 2.1], 2), is_over([3.0, 2.0, 2.1, 2.0], 2)
    (False, True)
    >>> is_over([], 1), is_over([3.0], 1), is_over([math.nan, math.nan], 1)
    (False, False, True)
    """
    told = [loss if math.isfinite(loss) else math.inf for loss in losses]
    return bool(told) and len(told) - 1 - told.index(min(told)) >= patience


class EarlyStopping(TrainerCallback):
    """Ends training by the held-out loss.

    Args:
        patience: Evaluations in a row without a new lowest loss.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A run that was killed after its last evaluation only has to be published."""
        self._decide(state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop, and leave a checkpoint of the step at which it was."""
        self._decide(state, control)
        control.should_save |= control.should_training_stop

    def _decide(self, state: Any, control: Any) -> None:
        rows = [row for row in state.log_history if "eval_loss" in row]
        losses = [row["eval_loss"] for row in rows]
        if not is_over(losses, self._patience):
            return
        control.should_training_stop = True
        if state.is_world_process_zero:
            lowest = min(rows, key=lambda row: row["eval_loss"])
            log.info(
                "stopped at step %d: the held-out loss was lowest at step %d, %.4f, and %d "
                "evaluations since brought no lower one",
                state.global_step,
                lowest["step"],
                lowest["eval_loss"],
                len(losses) - 1 - rows.index(lowest),
            )
