"""A genuine SLURM cluster for tests: its life, its jobs, and what may happen to them.

`tests/slurm_cluster.sh` makes it; the fixtures `slurm` and `slurm_bare` hand it out. Nodes node1..
have 8 fake GPUs each, cpu1 and cpu2 none. Partitions: `train` (the default; its jobs are preempted
and requeued), `urgent` (preempts it), `short` (at most 30 minutes) and `cpu`. Knows nothing about
Pressroom.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("slurm_cluster.sh")
COMMANDS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "nsenter")
ACCOUNTING_COMMANDS = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY")


def why_not(*, accounting: bool) -> str | None:
    """Why no cluster can be had on this machine; None when it can."""
    if os.geteuid() != 0:
        return "a SLURM cluster needs root"
    path = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
    needed = COMMANDS + ACCOUNTING_COMMANDS * accounting
    missing = [name for name in needed if shutil.which(name, path=path) is None]
    if missing:
        return f"a SLURM cluster needs {', '.join(missing)}: Debian's packages are in .ci/run"
    unshare = ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "true"]
    done = subprocess.run(unshare, capture_output=True, text=True, check=False)
    return f"a SLURM cluster needs namespaces: {done.stderr.strip()}" if done.returncode else None


def skip_or_fail(reason: str | None, environment: Mapping[str, str]) -> None:
    """Skip if there is a reason to; in CI, where nothing may be missing, fail."""
    if reason and environment.get("CI", "").lower() in ("true", "1"):
        pytest.fail(f"{reason} (with CI=true this is a failure)")
    if reason:
        pytest.skip(reason)


def scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what SLURM and its commands read or set."""
    ours = re.compile(r"(SLURM|SBATCH|SRUN|SALLOC|SQUEUE|SACCT|SINFO|SCANCEL|SCONTROL)D?_")
    return {name: value for name, value in environment.items() if not ours.match(name)}


@contextmanager
def cluster(
    *, accounting: bool, nodes: int = 2, grace: int = 30, warns: bool = True
) -> Iterator["Slurm"]:
    """A cluster of its own that ends with this process, however that ends.

    Args:
        accounting: Whether sacct works.
        nodes: Nodes with GPUs, 2 to 8.
        grace: Seconds from the warning of preemption to the end.
        warns: By a job's own signal; else by TERM, as SLURM does by itself.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # sockets need a short name
    settings = [
        f"nodes={nodes}",
        f"grace={grace}",
        f"accounting={'yes' if accounting else 'no'}",
        f"warns={'yes' if warns else 'no'}",
    ]
    # It is down as soon as its standard input ends, which our end does too.
    holder = subprocess.Popen(
        ["bash", SCRIPT, folder, "hold", *settings],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=scrubbed(os.environ),
        start_new_session=True,
        text=True,
    )
    try:
        if not holder.stdout.readline():
            pytest.fail(f"no SLURM cluster came up:\n{holder.communicate()[1]}")
        yield Slurm(folder, accounting=accounting)
    finally:
        holder.communicate(timeout=60)


class Slurm:
    """A running cluster. Jobs are named by their ids, as text."""

    def __init__(self, folder: Path, *, accounting: bool) -> None:
        self.folder = folder
        self.accounting = accounting
        self.env = scrubbed(os.environ) | {"SLURM_CONF": str(folder / "etc" / "slurm.conf")}
        """For every process that is to talk to this cluster."""
        self._dead: set[str] = set()

    # What one would type.

    def run(self, *command: str | Path, cwd: Path | None = None, seconds: float = 60) -> str:
        """What the command prints.

        Raises:
            AssertionError: It failed; its output is the message.
        """
        done = subprocess.run(
            command, env=self.env, cwd=cwd, text=True, capture_output=True, timeout=seconds
        )
        assert done.returncode == 0, f"{command} -> {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def sbatch(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        """Submit a job; its output goes where SLURM puts it, in cwd."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd)

    def exec_on(self, node: str, command: str, *, seconds: float = 60) -> str:
        """What a shell command prints that somebody runs who is logged in on the node."""
        return self._script("exec", node, "bash", "-c", command, seconds=seconds)

    # What is known of a job.

    def fields(self, job: str) -> dict[str, str]:
        """All that `scontrol show job` tells, for an hour after its end."""
        text = self.run("scontrol", "--oneliner", "show", "job", job).split("\n")[0]
        return dict(re.findall(r"(\S+?)=(.*?)(?=\s+[A-Z]\S*=|$)", text))

    def state(self, job: str) -> str:
        """Its state in one word, as RUNNING."""
        return self.fields(job)["JobState"]

    def restarts(self, job: str) -> int:
        """How often it was requeued."""
        return int(self.fields(job)["Restarts"])

    def log(self, job: str) -> str:
        """What it has printed so far, over all its starts."""
        fields = self.fields(job)
        files = {Path(fields[key]) for key in ("StdOut", "StdErr") if fields.get(key)}
        return "".join(p.read_text(errors="replace") for p in sorted(files) if p.is_file())

    def history(self, job: str, *, seconds: float = 15) -> list[str]:
        """How each of its starts ended, or goes on; waits until sacct has caught up."""
        found: list[str] = []

        def caught_up() -> bool:
            nonlocal found
            columns = ("--duplicates", "--noheader", "--parsable2", "--format=State")
            out = self.run("sacct", "--allocations", "--jobs", job, *columns)
            found = [line.split()[0] for line in out.splitlines()]
            # A requeued job may wait without a line of its own.
            return bool(found) and self.state(job) in (found[-1], "PENDING")

        self.until(caught_up, job, "in sacct as in squeue", seconds)
        return found

    # Waiting.

    def wait(self, job: str, *states: str, seconds: float = 60) -> str:
        """Wait until the job is in one of the states; by default until it is over.

        Raises:
            AssertionError: It took longer, or the job is over in another state.
        """
        wanted = states or OVER
        now = ""

        def there() -> bool:
            nonlocal now
            now = self.state(job)
            if now in OVER and now not in wanted:
                raise AssertionError(self._story(job, f"is {now}, not {' or '.join(wanted)}"))
            return now in wanted

        self.until(there, job, " or ".join(wanted), seconds)
        return now

    def until(self, is_so: Callable[[], object], job: str, what: str, seconds: float = 60) -> None:
        """Wait until a condition holds.

        Raises:
            AssertionError: It does not in time; the message ends with the job's log.
        """
        end = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > end:
                raise AssertionError(self._story(job, f"not {what} after {seconds:g} s"))
            time.sleep(0.1)

    def _story(self, job: str, what: str) -> str:
        fields = self.fields(job)
        shown = {key: fields[key] for key in ("JobState", "Reason", "Restarts", "ExitCode")}
        daemon = (self.folder / "log" / "slurmctld.log").read_text().splitlines()
        about = [line for line in daemon if re.search(rf"JobId={job}\b", line)]
        tails = [*self.log(job).splitlines()[-40:], "-- slurmctld --", *about[-15:]]
        return "\n".join([f"job {job}: {what}; {shown}", *tails])

    # What happens to jobs and nodes.

    def hurry(self, job: str, *, seconds: float = 60) -> None:
        """Spare a requeued job SLURM's wait of six seconds; return when it has started again.

        To be called when it was requeued: a job that runs is taken to run again.
        """

        def started() -> bool:
            fields = self.fields(job)
            start = fields["StartTime"]
            # While the job is COMPLETING the start is set anew each second. And a start of "now"
            # comes before the nodes have forgotten the last one, and fails.
            soon = timedelta(seconds=3)
            if (
                fields["JobState"] == "PENDING"
                and fields["Reason"] == "BeginTime"
                and start != "Unknown"
                and datetime.fromisoformat(start) - datetime.now() > soon
            ):
                self.run("scontrol", "update", f"jobid={job}", "starttime=now+2")
            return fields["JobState"] in ("RUNNING", *OVER)

        self.until(started, job, "running again", seconds)

    def preempt(self, job: str, *, nodes: int = 2, seconds: float = 90) -> None:
        """Let a more urgent job take all of some nodes for a moment.

        Args:
            job: Whom this must hit.
            nodes: How many nodes the urgent job takes.
            seconds: How long it may take the job to go.

        Raises:
            AssertionError: The urgent job came, and nothing happened to this one.
        """
        before = self.restarts(job)
        wanted = ("--partition=urgent", "--exclusive", f"--nodes={nodes}", "--output=/dev/null")
        urgent = self.sbatch(*wanted, "--wrap=true")
        self.until(lambda: self.restarts(job) > before, job, "preempted", seconds)
        self.wait(urgent, seconds=seconds)

    def kill_node(self, name: str) -> None:
        """Cut its power: all that runs there dies, and slurmctld is told."""
        self._dead.add(name)
        self._script("kill-node", name)

    def start_node(self, name: str) -> None:
        """Give it power again; return when it takes jobs."""
        self._script("start-node", name)
        self._dead.discard(name)
        self._until_nodes_are_up()

    def stop_controller(self) -> None:
        """End slurmctld, which saves its state; jobs go on."""
        self._script("stop-controller")

    def start_controller(self) -> None:
        """Start slurmctld again; return when it knows its nodes."""
        self._script("start-controller")
        self._until_nodes_are_up()

    def restart_controller(self) -> None:
        """Stop and start slurmctld: some 3 s."""
        self.stop_controller()
        self.start_controller()

    def cancel_all(self, *, seconds: float = 60) -> None:
        """End every job, wait until its processes are gone, and have every node up."""
        self.start_controller()  # when it is up, this is nothing
        for name in sorted(self._dead):
            self.start_node(name)
        self.run("scancel", "--user=root")
        end = time.monotonic() + seconds
        while left := self.run("squeue", "--noheader", "--format=%i %j %T"):
            assert time.monotonic() < end, f"jobs that do not end:\n{left}"
            time.sleep(0.1)

    def _until_nodes_are_up(self, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while down := [
            line
            for line in self.run("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
            if line.split()[0] not in self._dead
            and not re.search(r" (idle|mixed|allocated|completing)$", line)
        ]:
            assert time.monotonic() < end, f"nodes that do not come up: {down}"
            time.sleep(0.1)

    def _script(self, *arguments: str, seconds: float = 60) -> str:
        return self.run("bash", SCRIPT, self.folder, *arguments, seconds=seconds)
