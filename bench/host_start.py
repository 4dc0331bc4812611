"""One rank's start, timed by part: run by `accelerate launch` in the place of `train.sft`.

LAUNCHED=SECONDS TOLD=FILE python bench/host_start.py RECIPE --run RUN --dataset DATASET
"""

import time

marks = [time.time()]

import json  # noqa: E402
import os  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

PARTS = ("launcher", "torch", "libraries", "checks", "model", "trainer", "first step")
"""Until Python runs in the rank; imports of torch, and of all else; ranks, recipe and dataset;
weights and adapters; the trainer; its first step, and what comes before it."""


def mark() -> None:
    """A part is over."""
    marks.append(time.time())


def main() -> None:
    """Train, and write what each part took."""
    import torch  # noqa: F401

    mark()
    from pressroom.nn.lean_import import import_bitsandbytes

    import_bitsandbytes()  # as `train.sft` does
    from transformers import TrainerCallback

    from train import model, sft, trainer

    mark()
    load, build = model.build, trainer.build

    class FirstStep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            mark()
            launched = [float(os.environ["LAUNCHED"]), *marks]
            seconds = [after - before for before, after in zip(launched, marks, strict=False)]
            told = dict(zip(PARTS, seconds, strict=True))
            Path(os.environ["TOLD"]).write_text(json.dumps(told))

    def loaded(*arguments: Any) -> Any:
        mark()
        made = load(*arguments)
        mark()
        return made

    def built(*arguments: Any) -> Any:
        made = build(*arguments)
        made.add_callback(FirstStep())
        mark()
        return made

    vars(model)["build"], vars(trainer)["build"] = loaded, built
    sft.main()


if __name__ == "__main__":
    main()
