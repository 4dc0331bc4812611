"""Counted activations are those that real passes keep, and hold at their peak.

Passes run on the CPU as on a GPU: peft finds autocast without naming a device, dropout's mask has a
byte, and the head's tiles are folded in place.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pressroom.geometry import Geometry
from pressroom.nn.nf4 import compute_in
from pressroom.planner import activations
from pressroom.planner.activations import (
    backward_workspace,
    kept_activations,
    loss_bytes,
    recomputed_layer,
)
from pressroom.planner.decoder_layer import DecoderLayer
from pressroom.planner.weights import ATTENTION
from pressroom.recipe import Recipe
from train import attention, fast
from train.articles import Articles
from train.attention_backends import BACKENDS
from train.model import with_adapters
from train.speed import LEVELS

sys.path.append(str(Path(__file__).parents[1] / "bench"))

from random_model import config_of, random_base

T = TypeVar("T")
SHAPES = {"mha": (128, 320, 2, 2), "gqa": (256, 704, 4, 2), "narrow": (192, 512, 6, 2)}
"""Hidden size, the MLP's, heads, key-value heads."""
MODES = ("none", "selective", "full")
DROPOUT = "lora.dropout=0.1"
FP32 = (
    "memory.precision=fp32",
    "quantization.compute_dtype=float32",
    "quantization.storage_dtype=float32",
)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    enabled = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device="cpu": enabled(device))

    def dropout(x: torch.Tensor, p: float, training: bool, inplace: bool = False) -> torch.Tensor:
        return torch.native_dropout(x, p, training)[0] if p else x

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)


class Alive(TorchDispatchMode):
    """Counts the storages that operations have made and that still live."""

    def __init__(self, known: torch.nn.Module) -> None:
        super().__init__()
        self._known = {p.untyped_storage().data_ptr() for p in known.parameters()}
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self._before: dict[int, Any] = {}
        self.peak: int | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self._known:
                    reference = StorageWeakRef(storage)
                    self._storages.setdefault(reference.cdata, (reference, storage.nbytes()))
        if self.peak is not None:
            self.peak = max(self.peak, self.now())
        return out

    def now(self) -> int:
        """Bytes that live now."""
        alive = {k: held for k, held in self._storages.items() if not held[0].expired()}
        self._storages = alive
        return sum(size for key, (_, size) in alive.items() if key not in self._before)

    def forget_all_but(self, tensor: torch.Tensor) -> None:
        """Count from now on, and one tensor of before."""
        self._before = dict(self._storages)  # the references, or their keys would be used again
        self._before.pop(StorageWeakRef(tensor.untyped_storage()).cdata)


class Case:
    """A model of some layers with adapters, a batch of packed rows, and what is counted of them."""

    def __init__(
        self,
        make_recipe: Callable[..., Recipe],
        shape: str,
        rows: int,
        length: int,
        *overrides: str,
        attention: str = "sdpa",
        save: str = "plain",
    ) -> None:
        make_recipe(memory={"precision": "bf16"}, quantization={}, lora={"r": 8, "alpha": 8})
        self.recipe = Recipe.load("recipe.yaml", overrides)
        self.shape, self.attention, self.save = SHAPES[shape], attention, save
        self.tokens = rows * length
        cut = length // 3
        row = [*range(cut), *range(length - cut)]  # two articles
        positions = range(self.tokens) if attention == "flash" else row * rows
        self.inputs = {"position_ids": torch.tensor([*positions])[None]}
        self.inputs["input_ids"] = torch.randint(3, 320, (1, self.tokens))
        if save != "plain":
            lengths = [cut, length - cut] * rows
            numbers = torch.repeat_interleave(torch.arange(2 * rows), torch.tensor(lengths))
            self.inputs["articles"] = Articles(lengths, torch.zeros(0), numbers, "blocks")
            self.inputs["attention_mask"] = torch.empty(1, 1, 0, 0)

    def geometry(self, layers: int) -> Geometry:
        """The shape, so many layers deep."""
        hidden, inner, heads, kv_heads = self.shape
        return Geometry(
            vocab_size=320,
            hidden_size=hidden,
            intermediate_size=inner,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=hidden // heads,
        )

    def counted(self, function: Callable[[DecoderLayer], T], layers: int) -> T:
        """What a function of the planner says."""
        recipe = self.recipe
        return function(
            DecoderLayer(
                *(self.geometry(layers), recipe.lora, recipe.memory, self.tokens),
                *(self.attention, recipe.quantization is not None, self.save),
            )
        )

    def model(self, layers: int) -> torch.nn.Module:
        """With adapters that have gradients already, as every step but the first."""
        geometry = self.geometry(layers)
        if self.recipe.quantization is None:
            from transformers import LlamaForCausalLM

            base = LlamaForCausalLM(config_of(geometry)).bfloat16().requires_grad_(False)
        else:
            base = random_base(geometry, torch.device("cpu"))
        if self.recipe.memory.precision == "fp32":
            compute_in(base, torch.float32)
        # What flash keeps is what sdpa keeps where it needs no mask.
        base.set_attn_implementation("eager" if self.attention == "eager" else "sdpa")
        model = with_adapters(base, self.recipe)
        if self.recipe.memory.activation_checkpointing == "full":
            base.activation_checkpointing_enable()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        if self.save != "plain":
            attention.attach(base, "blocks")
            assert fast.speed_up(model.train(), level=LEVELS[self.save]).patched == layers
        return model

    def kept(self, layers: int) -> int:
        """Bytes that live after a forward pass, but for the logits."""
        model = self.model(layers)
        with Alive(model) as alive:
            logits = model(**self.inputs, use_cache=False).logits
        return alive.now() - logits.untyped_storage().nbytes()


KEPT = [
    (shape, rows, length, mode, attention, ())
    for shape, rows, length in (("mha", 1, 192), ("gqa", 2, 96), ("narrow", 3, 64))
    for mode in MODES
    for attention in ("sdpa", "eager", "flash")
    if shape != "narrow" or mode == "none"
] + [
    ("gqa", rows, length, mode, attention, overrides)
    for modes, rows, length, attention, overrides in (
        (MODES[:2], 1, 128, "sdpa", ("lora.r=32",)),
        (MODES[:2], 2, 64, "sdpa", (DROPOUT,)),
        (MODES[:1], 1, 128, "eager", (DROPOUT, "lora.target_modules=[o_proj,down_proj]")),
        (MODES[:1], 1, 128, "sdpa", (f"lora.target_modules=[{','.join(ATTENTION)}]",)),
        (MODES[:2], 1, 192, "sdpa", ("lora.target_modules=[o_proj,up_proj]",)),
        (MODES[:2], 1, 128, "eager", ("lora.target_modules=[q_proj,v_proj]",)),
        (MODES[:2], 1, 128, "sdpa", ("quantization=null",)),
        (MODES[:1], 1, 128, "sdpa", ("quantization=null", DROPOUT)),
        (MODES[:2], 1, 128, "sdpa", FP32),
        (MODES[:1], 1, 128, "eager", (*FP32, DROPOUT)),
        (MODES[:1], 1, 128, "sdpa", ("memory.precision=fp32", "quantization=null")),
    )
    for mode in modes
]


@pytest.mark.parametrize(("shape", "rows", "length", "mode", "attention", "overrides"), KEPT)
def test_kept_activations_are_what_stays_alive(
    make_recipe, shape: str, rows: int, length: int, mode: str, attention: str, overrides: tuple
) -> None:
    """Bytes that another layer adds, to the byte."""
    mode = f"memory.activation_checkpointing={mode}"
    case = Case(make_recipe, shape, rows, length, mode, *overrides, attention=attention)
    counted = case.counted(kept_activations, 3) - case.counted(kept_activations, 2)
    assert case.kept(3) - case.kept(2) == counted


@pytest.fixture
def attention_of_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: what a kernel has for itself is not counted; ours for CPUs has plenty."""

    def attend(q: Any, k: Any, v: Any, articles: Articles, scale: float) -> torch.Tensor:
        heads = (t.transpose(0, 1)[None] for t in (q, k, v))
        out = scaled_dot_product_attention(*heads, is_causal=True, scale=scale, enable_gqa=True)
        return out[0].transpose(0, 1)

    monkeypatch.setitem(BACKENDS, "blocks", attend)


def lean(make_recipe: Any, shape: str, rows: int, length: int, save: str, *keys: str) -> Case:
    return Case(make_recipe, shape, rows, length, *keys, attention="flash", save=save)


LEAN = [
    ("mha", 1, 192, "all", ()),
    ("gqa", 2, 96, "all", ()),
    ("gqa", 2, 96, "less", ()),
    ("gqa", 2, 96, "least", ()),
    ("gqa", 1, 128, "less", FP32),
    ("mha", 2, 128, "least", ("lora.r=32", "quantization=null")),
    ("gqa", 2, 96, "all", ("memory.activation_checkpointing=full",)),
]


@pytest.mark.parametrize(("shape", "rows", "length", "save", "overrides"), LEAN)
def test_what_lean_layers_keep_stays_alive(
    make_recipe, shape: str, rows: int, length: int, save: str, overrides: tuple
) -> None:
    """To the byte, but for the logsumexp that a GPU's attention keeps and a CPU's does not."""
    case = lean(make_recipe, shape, rows, length, save, *overrides)
    counted = case.counted(kept_activations, 3) - case.counted(kept_activations, 2)
    is_checkpointed = case.recipe.memory.activation_checkpointing == "full"
    logsumexp = 0 if is_checkpointed else 4 * case.shape[2] * case.tokens
    assert case.kept(3) - case.kept(2) == counted - logsumexp


@pytest.mark.parametrize(
    ("shape", "rows", "length", "save", "overrides"),
    [
        ("mha", 3, 192, "all", ()),
        ("mha", 3, 192, "less", ()),
        ("gqa", 2, 192, "least", ()),
        ("gqa", 1, 48, "all", ("lora.r=2",)),
        ("narrow", 3, 192, "all", FP32),
        ("gqa", 2, 192, "all", ("memory.activation_checkpointing=full",)),
    ],
)
def test_a_lean_layers_backward_pass_peaks_as_counted(
    make_recipe,
    attention_of_no_bytes: None,
    shape: str,
    rows: int,
    length: int,
    save: str,
    overrides: tuple,
) -> None:
    case = lean(make_recipe, shape, rows, length, save, *overrides)
    again = case.counted(recomputed_layer, 3)
    workspace = case.counted(backward_workspace, 3).total
    assert added_at_peak(case) - again == pytest.approx(workspace, rel=0.15)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash"])
def test_what_stays_alive_is_what_autograd_saves(make_recipe, attention: str) -> None:
    """Its hooks see all that is kept but what a checkpoint stores for itself."""
    case = Case(make_recipe, "gqa", 2, 96, DROPOUT, attention=attention)
    model = case.model(2)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        return saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        model(**case.inputs, use_cache=False)
    found = sum(t.untyped_storage().nbytes() for key, t in saved.items() if key not in own)
    assert found == pytest.approx(case.kept(2), rel=0.003)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash"])
@pytest.mark.parametrize("mode", MODES)
def test_what_all_layers_share(make_recipe, mode: str, attention: str) -> None:
    mode = f"memory.activation_checkpointing={mode}"
    case = Case(make_recipe, "gqa", 2, 192, mode, attention=attention)
    one, two = (case.counted(kept_activations, layers) for layers in (1, 2))
    # The last norm, and what the first needs no gradient for.
    norm = case.tokens * (4 * 256 + 4)
    first = norm if mode.endswith("none") else 0
    found = case.kept(2) - 2 * (two - one) - norm + first
    assert found == pytest.approx(2 * one - two, abs=16_000)  # positions, casts


def added_at_peak(case: Case) -> int:
    """Bytes that a layer's backward pass adds at its peak to what was kept."""
    model = case.model(3)
    alive, marks = Alive(model), {}

    def watch(layer: Any, entered: Any, left: torch.Tensor) -> None:
        if "watched" not in marks and left.requires_grad:
            marks["watched"] = 1
            left.register_hook(start)
            entered[0].register_hook(stop)

    def start(gradient: torch.Tensor) -> None:
        marks["start"] = alive.peak = alive.now()

    def stop(gradient: torch.Tensor) -> None:
        marks["peak"], alive.peak = alive.peak, None

    model.get_base_model().model.layers[1].register_forward_hook(watch)
    with alive:
        logits = model(**case.inputs, use_cache=False).logits
        logits.float().sum().backward()
    return marks["peak"] - marks["start"]


BACKWARD = [
    (shape, rows, length, mode, attention, overrides)
    for mode in ("none", "full")
    for shape, rows, length, attention, overrides in (
        ("mha", 1, 64, "sdpa", ()),
        ("mha", 3, 192, "sdpa", ()),
        ("gqa", 1, 192, "flash", (DROPOUT,)),
        ("narrow", 1, 512, "eager", ()),
        ("gqa", 2, 192, "sdpa", (f"lora.target_modules=[{','.join(ATTENTION)}]",)),
        ("gqa", 2, 192, "sdpa", ("quantization=null",)),
        ("mha", 1, 192, "sdpa", ("quantization=null", DROPOUT)),
        ("narrow", 3, 192, "sdpa", FP32),
    )
] + [
    ("mha", 3, 192, "selective", "sdpa", ()),
    ("gqa", 1, 192, "selective", "flash", (DROPOUT,)),
    ("narrow", 2, 192, "selective", "sdpa", FP32),
]


@pytest.mark.parametrize(("shape", "rows", "length", "mode", "attention", "overrides"), BACKWARD)
def test_a_layers_backward_pass_peaks_as_counted(
    make_recipe, shape: str, rows: int, length: int, mode: str, attention: str, overrides: tuple
) -> None:
    mode = f"memory.activation_checkpointing={mode}"
    case = Case(make_recipe, shape, rows, length, mode, *overrides, attention=attention)
    again = case.counted(recomputed_layer, 3)
    workspace = case.counted(backward_workspace, 3).total
    assert (again == 0) == mode.endswith("none")
    assert added_at_peak(case) - again == pytest.approx(workspace, rel=0.15)


@pytest.mark.parametrize("precision", [(), FP32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("tokens", [48, 192])
def test_the_head_holds_what_is_counted(
    make_recipe, monkeypatch, tokens: int, precision: tuple
) -> None:
    from train import loss

    # Smaller pieces than ours, or nothing else would be seen beside them.
    assert activations.HEAD_TOKENS == loss._CHUNK_TOKENS
    monkeypatch.setattr(activations, "HEAD_TOKENS", 64)
    monkeypatch.setattr(loss, "_CHUNK_TOKENS", 64)
    case = Case(make_recipe, "mha", 1, tokens, *precision, attention="flash")
    model = case.model(1)
    base = model.get_base_model()
    loss.score_in_forward(base, lambda weight: nullcontext())
    norm, alive = base.model.norm, Alive(model)

    def begin(_: object, entered: tuple) -> None:
        alive.forget_all_but(entered[0])
        alive.peak = 0

    norm.register_forward_pre_hook(begin)
    places, targets = torch.arange(tokens), case.inputs["input_ids"][0]
    with alive:
        output = model(**case.inputs, trained=places, targets=targets)
        peak, kept = alive.peak, alive.now()
    assert output.loss.requires_grad
    counted = loss_bytes(case.geometry(1), case.recipe.memory, tokens)
    assert kept == pytest.approx(counted.kept, rel=0.03)
    assert peak == pytest.approx(counted.peak, rel=0.03)
