"""`pressroom quantize`: the codes of bitsandbytes, in bounded memory, whole after any kill."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from bitsandbytes.nn import Linear4bit
from click.testing import CliRunner
from merging import quantization, random_llama
from training import losses, train
from transformers import AutoModelForCausalLM

from pressroom.console import UserError
from pressroom.nn import pieces
from pressroom.nn.nf4 import load_base
from pressroom.quantized_base import Codes
from pressroom.train_sections import Precision, Quantization
from train import quantize

CPU = torch.device("cpu")


def save_model(folder: Path, dtype: torch.dtype = torch.bfloat16, **shape: Any) -> Path:
    """A random Llama in several shards."""
    model = random_llama(dtype, **shape)
    model.save_pretrained(folder, max_shard_size="100KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    return folder


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All that a model holds as bytes: parameters, buffers and the state of its codes."""
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state.as_dict(packed=True)
            found |= {f"{name}.{key}": value for key, value in state.items()}
    return {name: as_bytes(tensor) for name, tensor in found.items()}


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    # Codes that are packed as floats may be NaN, which equals nothing.
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(64, 64), (3, 192), (100, 36), (1, 130), (5, 5), (4096, 70)])
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_slices_give_the_codes_of_bitsandbytes(
    monkeypatch: pytest.MonkeyPatch,
    quant_type: str,
    double_quant: bool,
    shape: tuple[int, int],
    source: torch.dtype,
) -> None:
    monkeypatch.setattr(pieces, "SLICE", 192)
    torch.manual_seed(0)
    weight = torch.randn(shape).to(source)
    weight[0, :30] = 0
    for storage in ("uint8", "bfloat16") if weight.numel() % 4 == 0 else ("uint8",):
        how = Quantization(quant_type=quant_type, double_quant=double_quant, storage_dtype=storage)
        codes, state = pieces.quantize(weight, how, torch.bfloat16, CPU)
        expected, expected_state = quantize_4bit(
            weight.bfloat16(),
            blocksize=64,
            compress_statistics=double_quant,
            quant_type=quant_type,
            quant_storage=getattr(torch, storage),
        )
        assert (codes.shape, codes.dtype) == (expected.shape, expected.dtype)
        assert torch.equal(as_bytes(codes), as_bytes(expected))
        mine, theirs = state.as_dict(packed=True), expected_state.as_dict(packed=True)
        assert same(mine, theirs)


@pytest.mark.parametrize("precision", ["bf16", "fp32", "fp16"])
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float32, torch.float16])
def test_a_base_is_the_one_that_is_quantized_on_load(
    home: Path, source: torch.dtype, precision: Precision
) -> None:
    """Read by us and by transformers alone: every tensor, every code and scale, bit by bit."""
    folder = save_model(home / "model", source)
    for how in ({}, {"quant_type": "fp4", "double_quant": False}):
        section = quantization(precision, **how)
        on_load = tensors(load_base(folder, section, precision, CPU))
        codes = quantize.make(Codes(folder, section, precision))
        made = load_base(folder, section, precision, CPU)
        assert Path(made.config._name_or_path) == codes
        assert same(tensors(made), on_load)
        linears = [m for m in made.modules() if isinstance(m, Linear4bit)]
        assert not any(linear.support_avx512bf16_for_cpu for linear in linears)
        assert same(tensors(AutoModelForCausalLM.from_pretrained(codes)), on_load)


def test_tied_embeddings(home: Path) -> None:
    folder = save_model(home / "model", tie_word_embeddings=True)
    section = quantization("bf16")
    on_load = tensors(load_base(folder, section, "bf16", CPU))
    quantize.make(Codes(folder, section, "bf16"))
    made = load_base(folder, section, "bf16", CPU)
    assert same(tensors(made), on_load)
    assert made.lm_head.weight is made.model.embed_tokens.weight


def test_the_whole_chain_is_the_same_bit_by_bit(make_recipe, home: Path) -> None:
    """Losses, perplexities and merged weights, codes quantized on load and before."""
    from merging import merge_run

    from generate.evaluate import evaluate

    def chain() -> tuple[Any, ...]:
        run = train()
        recipe = run.load_recipe()
        result = evaluate(run, recipe)
        report = merge_run(run)
        merged = hashes(run.merged)
        merged.pop("config.json")
        merged.pop("README.md")  # names the run
        return losses(run), result["perplexity"], report, merged, run.facts["quantized_base"]

    recipe = make_recipe()
    *on_load, nowhere = chain()
    folder = Path(recipe.model.base)
    place = quantize.make(Codes(folder, recipe.quantization, recipe.memory.precision))
    *before, used = chain()
    assert (nowhere, used) == (None, str(place))
    assert before == on_load


def in_a_process(home: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "train.quantize", *arguments],
        env={**os.environ, "PRESSROOM_HOME": str(home), **environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_kill_at_any_point_leaves_nothing_that_is_not_finished(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every write, sync and rename in turn: the next call ends with the same bytes."""
    from pressroom import files

    folder = save_model(home / "model")
    codes = Codes(folder, quantization("bf16"), "bf16")
    expected = hashes(quantize.make(codes))
    shutil.rmtree(codes.place)
    last = 0
    for last in range(1, 200):
        with monkeypatch.context() as patch:
            steps = _Steps(last)
            patch.setattr(files, "_sync", steps.counted(files._sync))
            patch.setattr(quantize, "save_file", steps.counted(quantize.save_file))
            patch.setattr(Path, "replace", steps.counted(Path.replace))
            patch.setattr(shutil, "copyfile", steps.counted(shutil.copyfile))
            with contextlib.suppress(KeyboardInterrupt):
                quantize.make(codes)
                break
        assert not codes.place.is_dir() or hashes(codes.place) == expected
        assert hashes(quantize.make(codes)) == expected
        shutil.rmtree(codes.place)
    assert 30 < last < 199


class _Steps:
    """Ends the process, as it were, at the step of that number."""

    def __init__(self, last: int) -> None:
        self.left = last

    def counted(self, real: Any) -> Any:
        def step(*arguments: Any, **keywords: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return real(*arguments, **keywords)

        return step


def test_a_killed_process_goes_on_and_keeps_what_is_whole(home: Path, caplog) -> None:
    folder = save_model(home / "model", num_hidden_layers=40)
    codes = Codes(folder, quantization("bf16"), "bf16")
    partial = codes.place.with_name(f".{codes.place.name}.partial")
    with in_a_process(home, str(folder)) as process:
        while len(list(partial.glob("model-*"))) < 5:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not codes.place.exists()
    kept = sorted(partial.glob("model-*"))
    assert len(kept) < 42
    times = [path.stat().st_mtime_ns for path in kept[1:4]]
    content = bytearray(kept[0].read_bytes())
    content[-1] ^= 1  # a disk that lied
    kept[0].write_bytes(content)
    (partial / "model-00042.safetensors").write_bytes(b"of another time")
    with caplog.at_level("INFO", logger="pressroom"):
        quantize.make(codes)
    assert "going on: " in caplog.text
    assert [(codes.place / p.name).stat().st_mtime_ns for p in kept[1:4]] == times
    resumed = hashes(codes.place)
    shutil.rmtree(codes.place)
    assert hashes(quantize.make(codes)) == resumed
    assert "model-00042.safetensors" not in resumed
    assert not [p for p in resumed if "partial" in p]


PROBE = """
import threading, time, sys
from pathlib import Path
from train import quantize
from pressroom.quantized_base import Codes
from pressroom.train_sections import Quantization
import torch
torch.set_num_threads(1)

def anonymous():
    text = Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) * 1024

quantize.make(Codes(Path(sys.argv[1]), Quantization(), "bf16"))  # all is imported and warm
before, peak, over = anonymous(), 0, False

def watch():
    global peak
    while not over:
        peak = max(peak, anonymous())
        time.sleep(0.0005)

thread = threading.Thread(target=watch)
thread.start()
quantize.make(Codes(Path(sys.argv[2]), Quantization(), "bf16"))
over = True
thread.join()
print(peak - before)
"""


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_memory_holds_a_tensor_and_its_codes(home: Path, source: torch.dtype) -> None:
    warm = save_model(home / "small")
    folder = save_model(
        home / "model",
        source,
        hidden_size=1024,
        intermediate_size=4096,
        num_attention_heads=16,
        num_key_value_heads=4,
        num_hidden_layers=3,
        vocab_size=512,
    )
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(warm), str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    largest = 4096 * 1024
    bound = largest * source.itemsize + largest * 0.5 + 20 * 2**20
    on_disk = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert int(done.stdout) < bound < on_disk


def run_command(*arguments: str) -> str:
    result = CliRunner().invoke(quantize.main, arguments, standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.output


def test_the_command_takes_a_model_or_a_recipe(make_recipe, home: Path, tiny_model: Path) -> None:
    make_recipe()
    first = run_command("recipe.yaml")
    again = run_command(str(tiny_model), "--precision", "fp32")
    assert first == again  # the same section, so the same codes
    assert Path(first.strip()).is_dir()
    other = run_command(str(tiny_model), "--quant-type", "fp4", "--no-double-quant")
    assert other != first
    assert "-fp4-" in other


def test_what_is_asked_wrongly(make_recipe, home: Path, tiny_model: Path) -> None:
    make_recipe()
    mistakes = {
        ("recipe.yaml", "--quant-type", "fp4"): "write quantization.quant_type=fp4 behind its name",
        ("recipe.yaml", "quantization=null"): "null leaves nothing to quantize",
        (str(tiny_model), "lora.r=4"): "lora.r=4: a model has no keys",
        ("recipe.yml",): "recipe.yml: no such file",
    }
    for arguments, message in mistakes.items():
        with pytest.raises(UserError, match=message):
            run_command(*arguments)
    made = run_command("recipe.yaml").strip()
    with pytest.raises(UserError, match="is quantized already"):
        run_command(made)


def test_a_disk_that_is_too_small(make_recipe, home: Path, monkeypatch) -> None:
    make_recipe()
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="GiB free, and the codes take"):
        run_command("recipe.yaml")


def test_damaged_codes_are_named_and_not_read(make_recipe, home: Path) -> None:
    recipe = make_recipe()
    place = Path(run_command("recipe.yaml").strip())
    folder, (first, second, *_) = Path(recipe.model.base), sorted(place.glob("model-*"))
    whole = first.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    first.write_bytes(flipped)
    with pytest.raises(UserError, match=f"pressroom quantize` again:\n  {first.name}: damaged"):
        run_command("recipe.yaml")
    first.write_bytes(whole[:-1])
    second.unlink()
    with pytest.raises(UserError, match=f"{first.name}: damaged\n  {second.name}: missing"):
        load_base(folder, recipe.quantization, recipe.memory.precision, CPU)


def test_a_model_that_lacks_a_tensor(home: Path) -> None:
    folder = save_model(home / "model")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    (folder / index["model.layers.1.mlp.up_proj.weight"]).unlink()
    with pytest.raises(UserError, match=r"there is no tensor model\.layers\.\d.*fetch the base"):
        quantize.make(Codes(folder, quantization("bf16"), "bf16"))
    (folder / "model.safetensors.index.json").unlink()
    for path in folder.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="missing or damaged"):
        quantize.make(Codes(folder, quantization("bf16"), "bf16"))


def test_two_at_once_are_one_too_many(home: Path) -> None:
    from pressroom.locks import lock

    codes = Codes(save_model(home / "model"), quantization("bf16"), "bf16")
    with (
        lock(codes.place.with_name(f".{codes.place.name}.lock"), "x"),
        pytest.raises(UserError, match="another process is at it"),
    ):
        quantize.make(codes)
