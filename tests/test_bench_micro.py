"""bench/: the micro-benchmark runs through, a trimmed wheel is still a wheel, rows are kept."""

import base64
import csv
import hashlib
import importlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from bench.trim_wheel import trim
from pressroom.console import UserError
from pressroom.geometry import SIZES

ROOT = Path(__file__).parents[1]
FACTS = ("date", "commit", "command", "hardware", "memory_gb", "torch", "cuda", "driver")
OWN = ("item", "geometry", "case", "column", "unit", "expected", "measured", "absent")


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script of bench/, as it is typed in the checkout."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict]]:
    """What a tiny run printed, and its rows; compiled cases only as far as 20 s allow."""
    path = tmp_path_factory.mktemp("micro") / "new" / "rows.jsonl"
    options = ("--geometry", "tiny", "--seconds", "20", "--rows", str(path))
    done = python("bench/micro_gpu.py", *options, PRESSROOM_COMMIT="abc1234")
    assert done.returncode == 0, done.stderr
    return done.stdout, [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_has_a_positive_figure_or_a_reason(tiny: tuple[str, list[dict]]) -> None:
    for row in tiny[1]:
        assert set(row) >= {*FACTS, *OWN, "bench", "bitsandbytes", "transformers", "trl", "peft"}
        assert row["commit"] == "abc1234"
        assert row["command"].startswith("python bench/micro_gpu.py --geometry tiny")
        assert (row["measured"] is None) != (row["absent"] is None), row
        if row["absent"] is None:
            assert row["measured"] > 0
            assert 0 < row["low_us"] <= row["median_us"] <= row["high_us"]
            assert row["calls"] >= 3


def test_what_a_cpu_has_is_measured_and_the_rest_has_its_reason(
    tiny: tuple[str, list[dict]],
) -> None:
    measured: dict[str, list] = {}
    for row in tiny[1]:
        measured.setdefault(row["item"], []).append(row["measured"])
    names = ("gemm forward", "gemm backward", "nf4 dequantize", "copy on the device")
    names += ("copy host to device", "attention sdpa flash", "attention sdpa math")
    names += ("adapter r=16", "adapter r=64", "SwiGLU eager", "RMSNorm eager")
    for name in names:
        assert all(measured[name]), name
    assert len(measured["gemm forward"]) == 12  # four shapes, three counts of tokens
    reasons = {row["item"]: row["absent"] for row in tiny[1] if row["absent"]}
    assert "not installed" in reasons["attention flash_attn"]
    assert "No " in reasons["attention sdpa cudnn"]
    assert "CPU" in reasons["attention varlen"]
    assert "backward" in reasons["attention flex"] or "skipped" in reasons["attention flex"]


def test_no_prediction_for_an_h200_stands_beside_a_cpu(tiny: tuple[str, list[dict]]) -> None:
    assert {row["expected"] for row in tiny[1]} == {None}


def test_the_table_comes_last(tiny: tuple[str, list[dict]]) -> None:
    lines = tiny[0].splitlines()
    assert "torch" in lines[0]
    assert lines[1].startswith("varlen_attn")
    assert len(lines) == 2 + len({(r["item"], r["geometry"], r["case"]) for r in tiny[1]})
    (line,) = [text for text in lines if text.startswith("gemm forward") and "down" in text]
    assert all(f"  {tokens} " in line for tokens in (64, 128, 256))
    assert line.endswith("TFLOP/s")


def test_time_that_is_spent_skips_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    done = python("bench/micro_gpu.py", "--geometry=tiny", "--seconds=0.2", f"--rows={path}")
    assert done.returncode == 0, done.stderr
    reasons = [json.loads(line)["absent"] for line in path.read_text().splitlines()]
    assert reasons
    assert set(reasons[-20:]) == {"skipped: the time was spent"}


def test_without_a_gpu_the_real_shapes_are_refused() -> None:
    done = python("bench/micro_gpu.py", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stderr.endswith("--geometry tiny tries everything on the CPU\n")
    assert "Traceback" not in done.stderr


def test_rows_are_appended_and_unknown_facts_are_null(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'bench'); from pathlib import Path\n"
        "from record import append, facts\n"
        "for number in range(2): append(Path(sys.argv[1]), {'n': number, **facts()})"
    )
    done = python("-c", code, str(tmp_path / "rows.jsonl"), PATH="", PRESSROOM_COMMIT="")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["n"] for row in rows] == [0, 1]
    assert rows[0]["commit"] is None  # no git on an empty PATH
    assert rows[0]["driver"] is None


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A module of bench/, imported as its neighbours import it."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module


def test_the_products_of_a_layer_are_its_weights(scripts: Callable[[str], ModuleType]) -> None:
    cases = list(scripts("micro_cases").gemms("70b"))
    layer = sum(
        case.work * (1 + case.case.split()[0].count("/"))
        for case in cases
        if case.column == "8192" and case.item == "gemm forward"
    )
    assert layer == 2 * 8192 * SIZES["70b"].num_linear_weights / 80
    assert {case.expected for case in cases} == {720}


def test_attention_counts_the_flops_under_the_diagonal(
    scripts: Callable[[str], ModuleType],
) -> None:
    """As does MFU's 6 s d L a token, forward and backward, less the scores done again."""
    cases = scripts("micro_attention").attentions("7b", compiled=False)
    forward, backward = (c for c in cases if (c.item, c.case) == ("attention varlen", "s=2048"))
    model = SIZES["7b"].model_flops_per_token(2048) - SIZES["7b"].model_flops_per_token(0)
    assert forward.work * 32 == 8192 * model / 3
    assert backward.work / forward.work == 2.5
    assert (forward.expected, backward.expected) == (290, 215)


@pytest.mark.parametrize(
    ("parameters", "gqa", "expected"),
    [
        (("max_k", "is_causal", "return_aux"), True, {"is_causal": True}),
        (("max_k", "window_size"), True, {"window_size": (-1, 0)}),
        (("window_size", "enable_gqa"), False, {"window_size": (-1, 0)}),
        (("window_size", "enable_gqa"), True, {"window_size": (-1, 0), "enable_gqa": True}),
    ],
)
def test_each_signature_of_varlen_is_told_of_causality(
    scripts: Callable[[str], ModuleType], parameters: tuple, gqa: bool, expected: dict
) -> None:
    assert scripts("micro_attention").varlen_arguments(parameters, gqa=gqa) == expected
    with pytest.raises(NotImplementedError, match=r"varlen_attn\(q, k\) has no causal"):
        scripts("micro_attention").varlen_arguments(("q", "k"), gqa=gqa)


def test_backends_see_only_the_past(scripts: Callable[[str], ModuleType]) -> None:
    """With fewer key heads: the first token's output is its own value, the last one's a mean."""
    import torch

    backends = scripts("micro_attention").BACKENDS
    query, key, value = (torch.randn(2, 8, heads, 16) for heads in (4, 2, 2))
    for name in ("sdpa flash", "sdpa math"):
        out = backends[name](2, 8, torch.device("cpu"))(query, torch.zeros_like(key), value)
        each = value.repeat_interleave(2, dim=2)
        assert out.shape == query.shape
        assert torch.allclose(out[:, 0], each[:, 0], atol=1e-6), name
        assert torch.allclose(out[:, -1], each.mean(1), atol=1e-6), name


def make_wheel(folder: Path, libraries: tuple[str, ...]) -> Path:
    """A wheel like bitsandbytes', of libraries that are only text."""
    wheel = folder / "bitsandbytes-9.9.9-py3-none-any.whl"
    files = {
        "bitsandbytes/__init__.py": "",
        **{f"bitsandbytes/libbitsandbytes_{name}.so": name * 1000 for name in libraries},
        "bitsandbytes-9.9.9.dist-info/METADATA": (
            "Metadata-Version: 2.1\nName: bitsandbytes\nVersion: 9.9.9\n"
        ),
        "bitsandbytes-9.9.9.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    record = "bitsandbytes-9.9.9.dist-info/RECORD"
    lines = [f"{name},{digest(text.encode())},{len(text)}" for name, text in files.items()]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(record, "\n".join([*lines, f"{record},,"]) + "\n")
    return wheel


def digest(content: bytes) -> str:
    """A hash as RECORD has it."""
    raw = hashlib.sha256(content).digest()
    return "sha256=" + base64.urlsafe_b64encode(raw).decode().rstrip("=")


LIBRARIES = ("cpu", "cuda118", "cuda130", "cuda132", "rocm70", "xpu2025")


def test_a_trimmed_wheel_has_one_cuda_library_and_installs(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, LIBRARIES)
    done = python("bench/trim_wheel.py", str(wheel), "130")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = archive.read("bitsandbytes-9.9.9.dist-info/RECORD").decode()
        for name, sha, size in csv.reader(record.splitlines()):
            content = archive.read(name)
            if not name.endswith("RECORD"):
                assert (sha, int(size)) == (digest(content), len(content)), name
        assert [name for name, *_ in csv.reader(record.splitlines())] == names
    kept = [name for name in names if name.endswith(".so")]
    assert kept == [f"bitsandbytes/libbitsandbytes_{name}.so" for name in ("cpu", "cuda130")]

    target = tmp_path / "target"
    offline = ("--no-index", "--no-deps", "--target", str(target))
    done = python("-m", "pip", "install", "--quiet", *offline, str(wheel))
    assert done.returncode == 0, done.stderr
    installed = sorted(file.name for file in (target / "bitsandbytes").glob("*.so"))
    assert installed == ["libbitsandbytes_cpu.so", "libbitsandbytes_cuda130.so"]


def test_a_cuda_that_the_wheel_lacks_is_named(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, LIBRARIES)
    before = wheel.read_bytes()
    with pytest.raises(UserError, match=r"CUDA 131, but for 118, 130, 132; did you mean 13"):
        trim(wheel, "131")
    assert wheel.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [wheel.name]


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.whl").write_bytes(b"PK")
    for name in ("cut.whl", "gone.whl"):
        done = python("bench/trim_wheel.py", str(tmp_path / name), "130")
        assert done.returncode == 2
        assert f"{name}: not a wheel that can be read" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("carry.sh", "error: usage: bench/carry.sh FOLDER [CUDA [PYTHON]]"),
        ("carry.sh new 13.0", "error: CUDA: 13.0: must be digits alone, as 130 for 13.0"),
        ("carry.sh new 130 py312", "error: PYTHON: py312: must be like 3.12"),
        ("carry.sh full", "error: full: not empty: two versions would collide"),
        ("carried.sh new", "error: usage: bench/carried.sh FOLDER COMMAND..."),
        ("carried.sh full true", "error: full: no wheels there: bench/carry.sh full"),
    ],
)
def test_a_mistake_with_the_carried_folder_is_told(
    tmp_path: Path, arguments: str, message: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    script, *rest = arguments.split()
    command = ["bash", str(ROOT / "bench" / script), *rest]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.strip()) == (2, message)


def test_a_command_runs_with_what_was_carried(tmp_path: Path) -> None:
    """Installed without a network the first time, again only when the folder has changed."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel = make_wheel(folder, LIBRARIES)
    show = "import bitsandbytes, pressroom; print(bitsandbytes.__file__, pressroom.__file__)"

    def carried() -> str:
        command = ["bash", str(ROOT / "bench/carried.sh"), f"{folder}/", "python3", "-c", show]
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    site = tmp_path / "wheels.site"
    expected = f"{site}/bitsandbytes/__init__.py {ROOT}/pressroom/__init__.py"
    assert carried() == expected
    (site / "mine").touch()
    assert carried() == expected
    assert (site / "mine").exists()
    os.utime(wheel, (2e9, 2e9))
    assert carried() == expected
    assert not (site / "mine").exists()
