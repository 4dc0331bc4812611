"""The cluster that other tests run on is a real one: nodes, GPUs, preemption, failures, signals."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from slurm import Slurm, cluster, skip_or_fail, why_not

# A task that says which signals come, and on USR2 ends well: what a trainer does.
TASK = """
import os, pathlib, signal, sys, time
def heard(number, frame):
    print("heard", signal.Signals(number).name, "on", os.uname().nodename, flush=True)
    sys.exit(0)
signal.signal(signal.SIGUSR2, heard)
pathlib.Path(sys.argv[1], "up." + os.environ["SLURM_PROCID"]).touch()
time.sleep(600)
"""


def task_job(slurm: Slurm, folder: Path, *arguments: str, nodes: int = 2) -> str:
    """A job of one such task a node, which runs; on its second start it only says so."""
    (folder / "task.py").write_text(TASK)
    script = folder / "job.sh"
    script.write_text(
        "#!/bin/bash\n"
        '[ -z "${SLURM_RESTART_COUNT:-}" ] || { srun hostname; exit 0; }\n'
        f"srun {sys.executable} task.py . && scontrol requeue $SLURM_JOB_ID; sleep 60\n"
    )
    job = slurm.sbatch(
        f"-N{nodes}", "--requeue", "--open-mode=append", *arguments, script, cwd=folder
    )
    slurm.until(lambda: len(list(folder.glob("up.*"))) == nodes, job, "up")
    return job


def lines_of(slurm: Slurm, job: str, start: str) -> list[str]:
    return sorted(line for line in slurm.log(job).splitlines() if line.startswith(start))


def outcome(reason: str | None, ci: str) -> str:
    try:
        skip_or_fail(reason, {"CI": ci})
    except (pytest.skip.Exception, pytest.fail.Exception) as error:  # a skip would skip this test
        return f"{type(error).__name__}: {error}"
    return "went on"


def test_a_missing_cluster_skips_and_in_ci_fails() -> None:
    assert outcome(None, "true") == "went on"
    assert outcome("no root", "") == outcome("no root", "false") == "Skipped: no root"
    assert outcome("no root", "true").startswith("Failed: no root")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in (why_not(accounting=True) or "")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda name, path: None if name == "mariadbd" else name)
    assert "needs mariadbd:" in (why_not(accounting=True) or "")
    monkeypatch.setattr("shutil.which", lambda name, path: name)
    (tmp_path / "unshare").write_text("#!/bin/sh\necho not permitted >&2; exit 1\n")
    (tmp_path / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert "not permitted" in (why_not(accounting=False) or "")


def test_two_hosts_and_their_gpus(slurm: Slurm) -> None:
    code = "echo $(hostname) $SLURM_PROCID $CUDA_VISIBLE_DEVICES"
    out = slurm.run("srun", "-N2", "--gpus-per-node=8", "bash", "-c", code)
    assert sorted(out.splitlines()) == ["node1 0 0,1,2,3,4,5,6,7", "node2 1 0,1,2,3,4,5,6,7"]
    assert slurm.run("srun", "-N2", "-pcpu", "hostname").split() in (
        ["cpu1", "cpu2"],
        ["cpu2", "cpu1"],
    )


def test_no_gpus_on_the_command_line_win(slurm: Slurm, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/bash\n#SBATCH --gpus-per-node=8\n"
        "srun bash -c 'echo gpus: ${SLURM_GPUS_ON_NODE:-none} ${CUDA_VISIBLE_DEVICES:-none}'\n"
    )
    jobs = [
        slurm.sbatch(*options, script, cwd=tmp_path) for options in ((), ("--gpus-per-node=0",))
    ]
    for job in jobs:
        slurm.wait(job, "COMPLETED")
    assert [slurm.log(job).strip() for job in jobs] == [
        "gpus: 8 0,1,2,3,4,5,6,7",
        "gpus: none none",
    ]
    with pytest.raises(AssertionError, match="configuration is not available"):
        slurm.sbatch("--partition=cpu", script, cwd=tmp_path)  # its nodes have no GPUs


def test_a_job_longer_than_its_partition_allows_waits_for_ever(
    slurm_bare: Slurm, tmp_path: Path
) -> None:
    job = slurm_bare.sbatch("--partition=short", "--time=31", "--wrap=true", cwd=tmp_path)
    refused = "PartitionTimeLimit"
    slurm_bare.until(lambda: slurm_bare.fields(job)["Reason"] == refused, job, refused)
    assert slurm_bare.state(job) == "PENDING"


def test_preemption_warns_the_tasks_of_all_nodes(slurm: Slurm, tmp_path: Path) -> None:
    job = task_job(slurm, tmp_path, "--signal=USR2@60")
    slurm.preempt(job)
    assert lines_of(slurm, job, "heard") == ["heard SIGUSR2 on node1", "heard SIGUSR2 on node2"]
    requeued = time.monotonic()
    slurm.hurry(job)
    assert time.monotonic() - requeued < 5.5  # left alone, it waits 6 s
    slurm.wait(job, "COMPLETED")
    assert lines_of(slurm, job, "node") == ["node1", "node2"]
    assert (slurm.restarts(job), slurm.history(job)) == (1, ["REQUEUED", "COMPLETED"])


def test_who_does_not_go_when_warned_is_requeued_by_slurm(
    tmp_path: Path, slurm_bare: Slurm
) -> None:
    with cluster(accounting=False, grace=0) as slurm:
        job = task_job(slurm, tmp_path)
        slurm.preempt(job)
        slurm.hurry(job)
        slurm.wait(job, "COMPLETED")
        assert "DUE TO PREEMPTION" in slurm.log(job)
        assert slurm.restarts(job) == 1


def test_a_node_dies_with_all_that_ran_on_it_and_the_job_is_requeued(
    slurm: Slurm, tmp_path: Path
) -> None:
    job = task_job(slurm, tmp_path)
    mark = f"{sys.executable} task.py"
    assert slurm.exec_on("node2", "hostname; pgrep -fc 'task.py'").split()[0] == "node2"
    before = processes(mark)
    slurm.kill_node("node2")
    assert len(processes(mark)) < len(before)
    with pytest.raises(AssertionError, match="node2 is not running"):
        slurm.exec_on("node2", "true")
    slurm.until(lambda: slurm.restarts(job) == 1, job, "requeued")
    slurm.start_node("node2")
    slurm.hurry(job)
    slurm.wait(job, "COMPLETED")
    assert slurm.history(job) == ["NODE_FAIL", "COMPLETED"]


def test_a_job_outlives_the_controller(slurm_bare: Slurm, tmp_path: Path) -> None:
    job = task_job(slurm_bare, tmp_path)
    slurm_bare.stop_controller()
    with pytest.raises(AssertionError, match="is DOWN"):
        slurm_bare.run("scontrol", "ping")
    slurm_bare.start_controller()
    assert (slurm_bare.state(job), slurm_bare.restarts(job)) == ("RUNNING", 0)
    slurm_bare.run("scancel", "--signal=USR2", job)
    slurm_bare.until(lambda: len(lines_of(slurm_bare, job, "heard")) == 2, job, "told")
    with pytest.raises(AssertionError, match="accounting storage is disabled"):
        slurm_bare.history(job)


def test_what_an_allocation_leaves_to_a_job_submitted_inside(slurm: Slurm, tmp_path: Path) -> None:
    """The job is what it asks for, but its srun takes the outer GPUs and memory for wishes."""
    script = tmp_path / "inner.sh"
    script.write_text("#!/bin/bash\nsrun -N1 echo ran\nenv\n")
    outer = ("salloc", "-N2", "--gpus-per-node=8", "--mem=4000", "--ntasks-per-node=4")
    code = (
        f"sbatch --wait -N1 -o inside.out {script} >&2; sed -n '/^SLURM_[A-Z]*_PER_/p' inside.out"
    )
    slurm.run(*outer, "bash", "-c", f"{code}; true", cwd=tmp_path)
    inside = (tmp_path / "inside.out").read_text()
    assert "ran" not in inside.splitlines()
    for left in ("SLURM_GPUS_PER_NODE=8", "SLURM_MEM_PER_NODE=4000", "SLURM_NTASKS_PER_NODE=4"):
        assert left in inside.splitlines()


def test_clusters_that_come_up_at_once_take_ports_of_their_own() -> None:
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        starting = [pool.submit(cluster, accounting=False) for _ in range(3)]
        several = list(pool.map(lambda c: stack.enter_context(c.result()), starting))
        ports = {slurm.run("bash", "-c", "grep ^SlurmctldPort $SLURM_CONF") for slurm in several}
        assert len(ports) == 3
        assert all(slurm.run("srun", "hostname") == "node1" for slurm in several)


def test_one_cluster_ends_with_its_owner_and_another_goes_on(
    slurm_bare: Slurm, tmp_path: Path
) -> None:
    code = (
        "import slurm, time\nwith slurm.cluster(accounting=False) as c:\n"
        "    print(c.folder, c.sbatch('--wrap=exec sleep 600', '-o/dev/null'), flush=True)\n"
        "    time.sleep(600)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    folder = owner.stdout.readline().split()[0]
    assert processes(f"{folder}/")
    assert slurm_bare.run("sinfo", "-hN", "-ptrain", "-o%T").split() == ["idle", "idle"]
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    end = time.monotonic() + 20
    while left := processes(f"{folder}/"):
        assert time.monotonic() < end, left
        time.sleep(0.1)
    assert slurm_bare.run("srun", "hostname") == "node1"


def processes(word: str) -> list[str]:
    """The command lines of this machine's processes that hold a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += [line] * (word in line)
    return found
