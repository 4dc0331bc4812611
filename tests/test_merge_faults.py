"""A merge that is killed, lacks room or memory, or meets another one."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from merging import quantization, save_adapter, save_base, source_of
from test_quantize import _Steps, hashes

from generate import merge_write
from generate.merge import Options, merge
from generate.merge_source import Source
from pressroom import files
from pressroom.console import UserError
from pressroom.locks import lock
from pressroom.quantized_base import Codes
from train import quantize

OPTIONS = Options(shard_size="60KB", verify=False)


@pytest.fixture
def source(home: Path) -> Source:
    """A small model in two dozen shards of what is written, with its codes."""
    base = save_base(home / "base", num_hidden_layers=6)
    quantize.make(Codes(base, quantization(), "bf16"))
    return source_of(save_adapter(home / "adapter", base), base, quantization())


def test_a_kill_at_any_point_leaves_nothing_that_is_not_finished(
    home: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every write, sync and rename in turn: the next call ends with the same bytes."""
    options = Options(shard_size="120KB", verify=False)
    output = home / "merged"
    merge(source, output, options)
    expected = hashes(output)
    shutil.rmtree(output)
    last = 0
    for last in range(1, 400):
        with monkeypatch.context() as patch:
            steps = _Steps(last)
            patch.setattr(files, "_sync", steps.counted(files._sync))
            patch.setattr(Path, "replace", steps.counted(Path.replace))
            patch.setattr(shutil, "copyfile", steps.counted(shutil.copyfile))
            patch.setattr(merge_write, "_write", steps.counted(merge_write._write))
            with contextlib.suppress(KeyboardInterrupt):
                merge(source, output, options)
                break
        assert not output.exists() or hashes(output) == expected
        if last % 3 == 0:
            merge(source, output, options)
            assert hashes(output) == expected
            assert not list(home.glob(".merged.*[!k]")), "only the lock is left"
            shutil.rmtree(output)
        shutil.rmtree(output, ignore_errors=True)
    assert 25 < last < 399


def _forked(source: Source, output: Path) -> int:
    """Merge in a process of its own, which has imported all."""
    child = os.fork()
    if child == 0:
        try:
            merge(source, output, Options(shard_size="5MB", verify=False))
        finally:
            os._exit(0)
    return child


def test_killed_at_twenty_moments_it_ends_with_the_same_bytes(home: Path) -> None:
    base = save_base(
        home / "base",
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=7,
        vocab_size=1024,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    assert sum(path.stat().st_size for path in base.glob("*.safetensors")) > 45e6
    quantize.make(Codes(base, quantization(), "bf16"))
    source = source_of(save_adapter(home / "adapter", base), base, quantization())
    start = time.monotonic()
    os.waitpid(_forked(source, home / "whole"), 0)
    took = time.monotonic() - start
    expected = hashes(home / "whole")
    by_lot, kills, kept = random.Random(9), 0, 0
    while kills < 20:
        child = _forked(source, home / "merged")
        time.sleep(by_lot.uniform(0.1, 0.9) * took)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        partial = home / ".merged.partial"
        kept += len(list(partial.glob("model-*")))
        if (home / "merged").exists():
            assert hashes(home / "merged") == expected
            shutil.rmtree(home / "merged")
        elif by_lot.random() < 0.3:
            shutil.rmtree(partial, ignore_errors=True)
    os.waitpid(_forked(source, home / "merged"), 0)
    assert hashes(home / "merged") == expected
    assert kept


def _stopped(source: Source, output: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> Path:
    """A merge that was killed when so many shards were finished."""
    with monkeypatch.context() as patch:
        steps = _Steps(after + 1)
        patch.setattr(merge_write, "_write", steps.counted(merge_write._write))
        with pytest.raises(KeyboardInterrupt):
            merge(source, output, OPTIONS)
    partial = output.with_name(f".{output.name}.partial")
    assert len(list(partial.glob("model-*"))) == after
    return partial


def test_finished_shards_are_kept_where_they_would_be_the_same(
    home: Path, source: Source, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    merge(source, home / "whole", OPTIONS)
    partial = _stopped(source, home / "merged", monkeypatch, 4)
    first, second, *others = sorted(partial.glob("model-*"))
    content = bytearray(first.read_bytes())
    content[-1] ^= 1  # a disk that lied
    first.write_bytes(content)
    header = bytearray(second.read_bytes())
    header[20] ^= 1
    second.write_bytes(header)
    (partial / "model-00099.safetensors").write_bytes(b"of another time")
    times = {path.name: path.stat().st_mtime_ns for path in others}
    with caplog.at_level("INFO", logger="pressroom"):
        merge(source, home / "merged", OPTIONS)
    assert "going on: 2 of" in caplog.text
    assert {n: (home / "merged" / n).stat().st_mtime_ns for n in times} == times
    assert hashes(home / "merged") == hashes(home / "whole")


def test_shards_of_another_merge_are_not_taken(
    home: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = save_adapter(home / "other", source.base)
    data = bytearray((other / "adapter_model.safetensors").read_bytes())
    data[-2] ^= 1
    (other / "adapter_model.safetensors").write_bytes(data)
    changed = {
        "adapter": (source_of(other, source.base, quantization()), OPTIONS),
        "dtype": (source, Options(shard_size="60KB", verify=False, dtype="float16")),
        "base": (source, Options(shard_size="60KB", verify=False, base_weights="original")),
        "size": (source, Options(shard_size="61KB", verify=False)),
        "codes": (
            source_of(source.adapter.folder, source.base, quantization(double_quant=False)),
            OPTIONS,
        ),
    }
    for name, (other_source, options) in changed.items():
        whole, output = home / f"{name}-whole", home / f"{name}-merged"
        merge(other_source, whole, options)
        _stopped(source, output, monkeypatch, 5)
        merge(other_source, output, options)
        assert hashes(output) == hashes(whole), name


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a file system of its own that is too small, where that can be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_said_and_when_there_is_room_it_goes_on(
    home: Path, source: Source, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(source, home / "whole", OPTIONS)
    output = small_disk / "merged"
    with pytest.raises(UserError, match=r"small: 0\.0 GiB free, and the merged model takes"):
        merge(source, output, OPTIONS)
    monkeypatch.setattr("generate.merge._require_room", lambda folder, needed: None)
    with pytest.raises(
        UserError, match=r"cannot be written to: No space left on device; [3-9] of \d+ shards are"
    ):
        merge(source, output, OPTIONS)
    assert not output.exists()
    assert not [p.name for p in (small_disk / ".merged.partial").iterdir() if p.name[0] == "."]
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    merge(source, output, OPTIONS)
    assert hashes(output) == hashes(home / "whole")


def test_two_merges_of_one_output_are_one_too_many(home: Path, source: Source) -> None:
    with (
        lock(home / ".merged.lock", "x"),
        pytest.raises(UserError, match=rf"merged: another process is at it: process {os.getpid()}"),
    ):
        merge(source, home / "merged", OPTIONS)


def test_damaged_codes_are_named_before_any_work(home: Path, source: Source) -> None:
    place = Codes(source.base, quantization(), "bf16").place
    shard = sorted(place.glob("model-*"))[2]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=rf"{shard.name}: damaged"):
        merge(source, home / "merged", OPTIONS)
    assert not list(home.glob(".merged.partial"))


PROBE = """
import threading, sys
from pathlib import Path
sys.path.insert(0, "tests")
from merging import quantization, source_of
from generate.merge import Options, merge
from pressroom.nn import base_rows

base_rows.SLICE = 2**18

def anonymous():
    text = Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) * 1024

def run(name):
    home = Path(sys.argv[1])
    source = source_of(home / f"{name}-adapter", home / name, quantization())
    merge(source, home / f"{name}-merged", Options(verify=False))

run("small")  # all is imported and warm
before, peak, over = anonymous(), 0, False

def watch():
    global peak
    while not over:
        peak = max(peak, anonymous())

thread = threading.Thread(target=watch)
thread.start()
run("large")
over = True
thread.join()
print(peak - before)
"""


@pytest.mark.parametrize("has_codes", [True, False], ids=["codes", "codes made again"])
def test_memory_holds_slices_alone(home: Path, has_codes: bool) -> None:
    save_adapter(home / "small-adapter", save_base(home / "small"))
    shape = {"hidden_size": 512, "intermediate_size": 8192, "num_attention_heads": 8}
    base = save_base(home / "large", torch.bfloat16, num_hidden_layers=2, **shape)
    save_adapter(home / "large-adapter", base)
    if has_codes:
        for name in ("small", "large"):
            quantize.make(Codes(home / name, quantization(), "bf16"))
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(home)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    largest, written = 4 * 512 * 8192, home / "large-merged" / "model.safetensors"
    # A slice in fp32 and rounded, what multiplies it, and what an allocator keeps of each thread.
    slices = len(os.sched_getaffinity(0)) * 4 * 4 * 2**18 + 16 * 2**20
    codes = 0 if has_codes else largest // 4 + 20 * 2**20  # two tensors' codes, and quantizing
    assert int(done.stdout) < slices + codes < written.stat().st_size
