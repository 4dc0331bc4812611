"""A copy of the quantized base on a node's own disk: whole or not there, made once."""

import multiprocessing
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from pressroom import quantized_base, staging
from pressroom.console import UserError
from pressroom.files import publish_json, sha256_file
from pressroom.quantized_base import Codes
from pressroom.staging import stage
from pressroom.train_sections import Quantization

BYTES = {"model-1.safetensors": b"one" * 1000, "model-2.safetensors": b"two" * 2000}


@pytest.fixture
def codes(home: Path, tiny_model: Path) -> Codes:
    """Codes that lie where those of a model do; nobody looks into them."""
    codes = Codes(tiny_model, Quantization(), "bf16")
    write(codes.place)
    return codes


def write(place: Path) -> Path:
    place.mkdir(parents=True)
    for name, content in BYTES.items():
        (place / name).write_bytes(content)
    (place / "config.json").write_text("{}")
    shards = {n: {"bytes": len(b), "sha256": sha256_file(place / n)} for n, b in BYTES.items()}
    publish_json(quantized_base.manifest(place), {"shards": shards})
    return place


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_by_a_job(codes: Codes) -> Path | None:
    return quantized_base.nearest(codes.folder, codes.quantization, codes.precision)


def test_jobs_read_the_copy(codes: Codes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRESSROOM_STAGED", str(tmp_path / "node"))
    assert read_by_a_job(codes) == codes.place
    copy = stage(codes.place, tmp_path / "node")
    assert copy == tmp_path / "node" / codes.place.name
    assert files(copy) == files(codes.place)
    assert read_by_a_job(codes) == copy
    assert codes.find() == codes.place  # what a run remembers: the copy goes with the job
    assert [p.name for p in copy.parent.iterdir() if p != copy] == [f".{copy.name}.lock"]
    assert quantized_base.nearest(codes.folder, None, "bf16") is None
    monkeypatch.delenv("PRESSROOM_STAGED")
    assert read_by_a_job(codes) == codes.place


def _cut(copy: Path) -> None:
    (copy / "model-2.safetensors").write_bytes(b"two")


def _lose(copy: Path) -> None:
    (copy / "model-1.safetensors").unlink()


def _of_another_make(copy: Path) -> None:
    quantized_base.manifest(copy).write_text('{"shards": {}}')


def _without_a_manifest(copy: Path) -> None:
    quantized_base.manifest(copy).unlink()


@pytest.mark.parametrize("spoil", [_cut, _lose, _of_another_make, _without_a_manifest])
def test_a_copy_that_is_not_whole_is_not_read_and_made_again(
    codes: Codes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any
) -> None:
    monkeypatch.setenv("PRESSROOM_STAGED", str(tmp_path / "node"))
    copy = stage(codes.place, tmp_path / "node")
    spoil(copy)
    assert read_by_a_job(codes) == codes.place
    stage(codes.place, tmp_path / "node")
    assert read_by_a_job(codes) == copy
    assert files(copy) == files(codes.place)


def test_a_copy_is_made_once(codes: Codes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = stage(codes.place, tmp_path / "node")
    monkeypatch.setattr(staging, "_copy", None)
    assert stage(codes.place, tmp_path / "node") == copy


def test_a_base_that_is_damaged_is_found_while_it_is_copied(codes: Codes, tmp_path: Path) -> None:
    shard = codes.place / "model-1.safetensors"
    shard.write_bytes(b"x" + shard.read_bytes()[1:])
    with pytest.raises(UserError, match=r"run `pressroom quantize` again:\n  model-1.*: damaged"):
        stage(codes.place, tmp_path / "node")
    assert [p.suffix for p in (tmp_path / "node").iterdir()] == [".lock"]


def test_a_disk_that_is_too_small_is_said_before_anything_is_copied(
    codes: Codes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(0, 0, 20 * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    stage(codes.place, tmp_path / "roomy")
    with (codes.place / "model-3.safetensors").open("wb") as sparse:
        sparse.truncate(36 * 2**30)
    with pytest.raises(UserError, match=r"node: 20\.0 GiB free, .* base takes 36\.0: make room"):
        stage(codes.place, tmp_path / "node")
    assert [p.suffix for p in (tmp_path / "node").iterdir()] == [".lock"]


def _job(place: Path, folder: Path) -> None:
    read = staging._copy

    def slowly(source: Path, target: Path) -> str:
        with (folder / "copied").open("a") as told:
            told.write(f"{source.name}\n")
        return read(source, target)

    staging._copy = slowly
    stage(place, folder)


def test_of_several_jobs_on_a_node_one_copies_and_the_others_wait(
    codes: Codes, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    folder = tmp_path / "node"
    jobs = [context.Process(target=_job, args=(codes.place, folder)) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(30)
    assert [job.exitcode for job in jobs] == [0] * 4
    assert sorted((folder / "copied").read_text().split()) == sorted(files(codes.place))
