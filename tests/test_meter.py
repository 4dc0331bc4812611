"""The rows of metrics.jsonl, and that making them waits for the GPU once a step."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training import metrics, train

from pressroom.geometry import Geometry
from pressroom.planner.choice import Gpus
from pressroom.planner.flops import hardware_flops_per_token
from pressroom.planner.gpu_kinds import kind_of
from pressroom.planner.here import kind_or_like
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from train import steps, trainer
from train.meter import FIGURES, Meter, peak_tflops

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "bincount"}
"""Operators that cannot return before a GPU has computed: they give the host a value or a size."""
FETCHES = ("tolist", "cpu", "numpy")
"""Methods that do the same, and are no operators on a CPU."""


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU, by whether it is in collating, a micro-step or elsewhere.

    What is collated lies on the host.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.phase, self.counts = "step", Counter()
        for name in FETCHES:
            monkeypatch.setattr(torch.Tensor, name, self._counted(name))
        self._during(monkeypatch, steps.Collator, "__call__", "host")
        self._during(monkeypatch, trainer.RecipeTrainer, "get_batch_samples", "host")
        self._during(monkeypatch, trainer.RecipeTrainer, "training_step", "micro-step")

    def _counted(self, name: str) -> Any:
        original = getattr(torch.Tensor, name)

        def method(tensor: torch.Tensor, *arguments: Any) -> Any:
            self.counts[self.phase, name] += 1
            return original(tensor, *arguments)

        return method

    def _during(self, monkeypatch: pytest.MonkeyPatch, kind: Any, name: str, phase: str) -> None:
        original = getattr(kind, name)

        def method(*arguments: Any, **keywords: Any) -> Any:
            before, self.phase = self.phase, phase
            try:
                return original(*arguments, **keywords)
            finally:
                self.phase = before

        monkeypatch.setattr(kind, name, method)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore
        name = function.overloadpacket.__name__
        masked = name == "index" and any(
            i is not None and i.dtype == torch.bool for i in arguments[1]
        )
        if name in WAITS or masked:
            self.counts[self.phase, name] += 1
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("options", [(), ("optimizer.max_grad_norm=0",)], ids=["clip", "no clip"])
def test_a_step_waits_for_the_gpu_once_and_a_micro_step_never(
    make_recipe, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    make_recipe(batch={"global_batch_size": 4, "micro_batch_size": 1})
    counted: dict[str, Counter[tuple[str, str]]] = {}
    original = trainer.RecipeTrainer._inner_training_loop

    def loop(self: Any, *arguments: Any, **keywords: Any) -> Any:
        self.remove_callback(Stop)
        self.add_callback(Stop)
        with pytest.MonkeyPatch.context() as patch, Waits(patch) as waits:
            Stop.waits = waits
            return original(self, *arguments, **keywords)

    class Stop(trainer.PrinterCallback):
        """Counts from the first step to the last: what goes before and after is no step."""

        waits: Waits

        def on_step_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            if state.global_step == 0:
                self.waits.counts.clear()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any) -> None:
            if "loss" in logs and state.global_step == 3:
                counted["steps"] = self.waits.counts.copy()

    monkeypatch.setattr(trainer.RecipeTrainer, "_inner_training_loop", loop)
    train("optimizer.num_steps=3", *options)
    on_gpu = {key: n for key, n in counted["steps"].items() if key[0] != "host"}
    assert on_gpu == {("step", "tolist"): 3}
    assert counted["steps"]["host", "nonzero"] >= 3 * 4  # it does see what there is


def test_batches_are_moved_without_waiting() -> None:
    copies = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore
            if function.overloadpacket.__name__ == "_to_copy":
                copies.append(keywords["non_blocking"])
            return function(*arguments, **(keywords or {}))

    inputs = {"input_ids": torch.ones(1, 4), "trained": torch.arange(3), "lengths": [4]}
    here = SimpleNamespace(args=SimpleNamespace(device=torch.device("meta")))
    here._prepare_input = lambda data: steps.Steps._prepare_input(here, data)
    with Copies():
        moved = here._prepare_input(inputs)
    assert copies == [True, True]
    assert moved["trained"].is_meta
    assert moved["lengths"] == [4]


def test_a_row_has_its_figures_and_null_for_what_is_not_known(make_recipe) -> None:
    make_recipe(prompt={"format": "llama2-chat"})  # the answer alone is trained
    rows = metrics(train("optimizer.num_steps=3"))
    for row in rows:
        assert list(row) == ["step", "loss", "learning_rate", "grad_norm", *FIGURES]
        assert row["mfu"] is row["hfu"] is None  # nobody knows a CPU's rate
        assert 0 < row["trained_tokens"] < row["tokens"] <= 4 * 128
        assert 0 < row["data_wait_seconds"] < row["step_seconds"]
        assert row["tokens_per_second_per_gpu"] == pytest.approx(
            row["tokens"] / row["step_seconds"], rel=0.01
        )
        assert row["peak_host_memory_gib"] == row["peak_memory_gib"] > 0.1


def meter_on(recipe: Recipe, gpus: Gpus, tiny_model: Path) -> Meter:
    return Meter(RunDir(Path("run")), recipe, Geometry.of(tiny_model), gpus)


@pytest.mark.parametrize(
    ("mode", "save"), [("none", "all"), ("none", "less"), ("selective", "plain"), ("full", "all")]
)
def test_mfu_and_hfu_are_their_formulas(
    make_recipe, tiny_model: Path, mode: Any, save: Any
) -> None:
    recipe = make_recipe(
        speed={"save": save},
        memory={"precision": "bf16", "activation_checkpointing": mode},
        quantization={"compute_dtype": "bfloat16", "storage_dtype": "bfloat16"},
    )
    meter = meter_on(recipe, Gpus(kind=kind_of("h100"), gpus_per_node=4), tiny_model)
    lengths = [400_000, 100_000, 500_000]  # so many that the figures have digits
    squares = sum(n * n for n in lengths)
    found = meter.figures(sum(lengths), 7, squares)
    geometry, attended = Geometry.of(tiny_model), squares / sum(lengths)
    weights = geometry.num_linear_weights + geometry.num_head_weights
    width = geometry.num_heads * geometry.head_dim * geometry.num_layers
    model = 4 * weights + 6 * attended * width
    hardware = (6, 9) if mode == "full" else (4, 7)
    executed = hardware[0] * weights + hardware[1] * attended * width
    if save == "less":  # gate and up of each layer
        inner, hidden = geometry.intermediate_size, geometry.hidden_size
        executed += 2 * 2 * inner * hidden * geometry.num_layers
    assert hardware_flops_per_token(geometry, attended, mode, save) == executed
    rate = found["tokens_per_second_per_gpu"]
    assert found["mfu"] == pytest.approx(rate * model / 989e12, rel=0.01, abs=6e-5)
    assert found["hfu"] == pytest.approx(rate * executed / 989e12, rel=0.01, abs=6e-5)
    assert found["hfu"] > found["mfu"] > 0.001


def test_the_rate_of_an_unknown_gpu_is_not_a_neighbours() -> None:
    known, unknown = Gpus(kind=kind_of("a100-80")), Gpus(kind=kind_or_like("NVIDIA X1", 79.0))
    assert unknown.kind.tflops > 0  # the planner has some
    assert peak_tflops(known, "bf16") == 312
    assert peak_tflops(known, "fp16") == 312
    assert peak_tflops(known, "fp32") is None
    assert peak_tflops(unknown, "bf16") is None
    assert peak_tflops(Gpus(kind=kind_of("t4")), "bf16") is None


def test_evaluating_and_saving_are_not_in_a_steps_time(make_recipe, monkeypatch) -> None:
    import time

    make_recipe(evaluation={"every_steps": 1})
    original = trainer.RecipeTrainer.prediction_step

    def slow(*arguments: Any, **keywords: Any) -> Any:
        time.sleep(1.0)
        return original(*arguments, **keywords)

    monkeypatch.setattr(trainer.RecipeTrainer, "prediction_step", slow)
    rows = metrics(train("optimizer.num_steps=3"))
    seconds = [row["step_seconds"] for row in rows if "loss" in row]
    assert len(seconds) == 3
    assert seconds[1] + seconds[2] < 1.5


def test_the_state_of_a_checkpoint_does_not_grow_with_the_steps(make_recipe) -> None:
    import json

    make_recipe(evaluation={"every_steps": 2})
    run = train("optimizer.num_steps=4", "checkpoint.every_steps=4")
    state = json.loads((run.checkpoint(4) / "trainer_state.json").read_text())
    assert [(row["step"], "eval_loss" in row) for row in state["log_history"]] == [
        (2, True),
        (4, True),
    ]
