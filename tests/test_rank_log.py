"""A rank's own file: all that it writes, from before torch is imported to its last words."""

import os
import re
import subprocess
import sys
from pathlib import Path

from pressroom.run_dir import RunDir

ROOT = Path(__file__).parents[1]


def rank(tmp_path: Path, torch: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start a rank whose torch is a file of ours: it fails while it imports."""
    (tmp_path / "torch.py").write_text(torch)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    logs = {"PRESSROOM_RANK_LOGS": str(tmp_path / "logs"), "PYTHONUNBUFFERED": ""} | environment
    return subprocess.run(
        [sys.executable, "-m", "train.sft", "demo"],
        env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "RANK": "12", **logs},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


NATIVE = """
import ctypes, os
os.write(1, b"from a child or a library\\n")
ctypes.CDLL(None).dprintf(2, b"from C\\n")
print("from python")
raise ImportError("libcudart.so: cannot open shared object file")
"""


def test_what_fails_while_torch_is_imported_is_in_the_file(tmp_path: Path) -> None:
    done = rank(tmp_path, NATIVE, SLURM_JOB_ID="71", SLURMD_NODENAME="node2")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    opened, *lines = RunDir(tmp_path).rank_log(12).read_text().splitlines()
    assert re.fullmatch(r"--- 20\d\d-\d\d-\d\dT\S+ on node2 job 71 restart 0", opened)
    assert lines[:3] == ["from a child or a library", "from C", "from python"]
    assert lines[-1] == "ImportError: libcudart.so: cannot open shared object file"


def test_the_next_start_goes_on_in_the_same_file(tmp_path: Path) -> None:
    for restart in ("0", "1"):
        rank(tmp_path, NATIVE, SLURM_JOB_ID="71", SLURM_RESTART_COUNT=restart)
    told = RunDir(tmp_path).rank_log(12).read_text()
    assert re.findall(r"job 71 restart \d", told) == ["job 71 restart 0", "job 71 restart 1"]
    assert told.count("from C") == 2


def test_a_native_crash_leaves_its_last_words(tmp_path: Path) -> None:
    done = rank(tmp_path, "import ctypes\nprint('step 7')\nctypes.string_at(0)\n")
    assert done.returncode == -11
    told = RunDir(tmp_path).rank_log(12).read_text()
    assert "step 7" in told
    assert "Segmentation fault" in told
    assert "torch.py" in told


def test_a_wrong_recipe_is_told_there(tmp_path: Path) -> None:
    """With the real torch, through the command's own end."""
    done = subprocess.run(
        [sys.executable, "-m", "train.sft", "nothing.yaml"],
        env={**os.environ, "PRESSROOM_RANK_LOGS": str(tmp_path / "logs"), "RANK": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (2, "")
    assert "error: nothing.yaml: no such file" in RunDir(tmp_path).rank_log(0).read_text()


def test_without_the_variable_a_rank_writes_where_its_launcher_does(tmp_path: Path) -> None:
    done = rank(tmp_path, NATIVE, PRESSROOM_RANK_LOGS="")
    assert "from python" in done.stdout
    assert "ImportError" in done.stderr


def test_a_folder_that_cannot_be_written_does_not_end_the_rank(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = rank(tmp_path, NATIVE, PRESSROOM_RANK_LOGS=str(tmp_path / "file" / "logs"))
    assert "rank-00012.log: Not a directory: this rank writes here instead" in done.stderr
    assert "ImportError" in done.stderr
