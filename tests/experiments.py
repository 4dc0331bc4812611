"""A trainer that takes no time, in the place of `train.sft`: what experiments ask of one, no more.

It writes the losses that a bowl over learning rate and rank would give, and an adapter; far from
the bottom it gives others time to see its evaluations. With
PRESSROOM_TEST_STOP in its environment it stays at step 1 until the file of that name is gone.
"""

from pathlib import Path

TRAINER = """
import json, os, signal, sys, time
from pathlib import Path
import yaml

arguments = dict(zip(sys.argv[2::2], sys.argv[3::2]))
recipe = yaml.safe_load(Path(sys.argv[1]).read_text())
run = Path(arguments["--run"])
rank = int(os.environ.get("RANK", 0))
asked = []
signal.signal(signal.SIGUSR2, lambda number, frame: asked.append(number))
if rank == 0:
    world = int(os.environ.get("WORLD_SIZE", 1))
    rate, r = recipe["optimizer"]["learning_rate"], recipe["lora"]["r"]
    steps, every = recipe["optimizer"]["num_steps"], recipe["evaluation"]["every_steps"]
    bowl = abs(rate - 2e-3) * 300 + abs(r - 8) / 50
    (run / "environment.json").write_text(json.dumps({"dataset": arguments["--dataset"]}))
    with (run / "metrics.jsonl").open("w") as file:
        def write(**row):
            file.write(json.dumps(row) + "\\n")
            file.flush()
        for step in range(1, steps + 1):
            seconds = 0.1 / world ** 0.9
            write(step=step, loss=6 - step / 50, tokens=500, trained_tokens=480 + step,
                  step_seconds=seconds, tokens_per_second_per_gpu=500 / seconds / world)
            if every and step % every == 0:
                write(step=step, eval_loss=5 + bowl - step / 100)
            stop = os.environ.get("PRESSROOM_TEST_STOP", "")
            while stop and Path(stop).exists() and not asked:
                time.sleep(0.05)
            patience = 4 if every and step % every == 0 and step < steps and bowl > 1 else 0
            until = time.monotonic() + patience
            while time.monotonic() < until and not asked:
                time.sleep(0.05)
            if asked:
                (run / "preempted").write_text(json.dumps({"step": step}))
                sys.exit(0)
    (run / "adapter").mkdir(exist_ok=True)
    (run / "adapter" / "adapter_model.safetensors").write_text("weights")
"""


def install(code: Path) -> None:
    """Put it into a copy of the code."""
    (code / "train" / "sft.py").write_text(TRAINER)
