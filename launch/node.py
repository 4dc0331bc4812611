"""On a node of a SLURM job, one task a node: the one entry for every way in.

    sbatch slurm/train_70b.sh      srun python -P -m launch.node train llama2_70b key=value ...
    sbatch slurm/prep.sh RECIPE    the same with prep, in each task of an array
    pressroom submit, run          submitit calls `of_run` in the code that was kept at submission

The nodes of a training meet, the first decides, each starts `accelerate launch` for its ranks.
USR2 asks the ranks to save and end; the first node then queues the job again, once: nobody else
does. Knows nothing of training.
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import get_args

import click

from launch import orders
from launch.allocation import Allocation, allocation, share
from launch.command import Stage, command_of, stage_command
from launch.experiments import giving_up
from launch.keys import Keys, to_do
from launch.local import GivenUp, run_to_end
from launch.meet import Message, follow, meeting
from launch.orders import Orders
from launch.process import ASK
from launch.rank_environment import cleaned
from launch.recorded import keep_error, recorded
from launch.training import NODE_LOCAL, gpus_of, job_runs, queue_again, train_here
from pressroom.console import UserError, entry, log
from pressroom.run_dir import RunDir


@contextmanager
def left_to_slurm() -> Iterator[None]:
    """Who is told to end by TERM ends its work, and waits for SLURM to end the job.

    It may be preempted: a job that ends by itself before its grace is over counts as failed, is
    never queued again, and what waits for it is cancelled.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    job = os.environ.get("SLURM_JOB_ID", "")
    try:
        yield
    except SystemExit as end:
        if end.code == 128 + signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may come twice
            log.info("told to end: SLURM ends this job now, or queues it again")
            while job_runs(job):
                time.sleep(2)
        raise


@click.command()
@click.argument("stage", type=click.Choice(get_args(Stage)))
@click.argument("what", metavar="RECIPE|RUN")
@click.argument("overrides", nargs=-1)
def main(stage: Stage, what: str, overrides: tuple[str, ...]) -> None:
    """Do a stage in this job; of a RECIPE prep, quantize and train, of a RUN the others."""
    with left_to_slurm():
        if stage == "train":
            _train(lambda here, gpus: orders.by_name(what, overrides, here, gpus))
            return
        options = share(os.environ).options if stage == "prep" else []
        _alone()
        run_to_end(stage, stage_command(stage, [what, *overrides, *options]))


def of_run(argument: str) -> None:
    """Do a stage of a run; what submitit calls.

    Args:
        argument: JSON of the stage and the run's folder. One string, for it is pickled.
    """
    with left_to_slurm():
        entry(lambda: _of_run(*json.loads(argument)))


def _of_run(stage: Stage, path: str) -> None:
    signal.signal(signal.SIGCONT, signal.SIG_DFL)  # submitit passes over it
    run, here = RunDir(Path(path)), share(os.environ)
    for folder in run.submissions:
        for left in folder.glob(f"{here.name}_*.save_tmp"):
            left.unlink(missing_ok=True)  # of a killed start; submitit would not write its result
    if stage == "train":
        with suppress(GivenUp):  # an end as good as any: its job is not queued again
            _train(lambda here, gpus: orders.submitted(path))
        return
    _alone()
    with recorded(run, Keys.read(run), stage, here.task):
        options = here.options if stage == "prep" else []
        run_to_end(stage, [*command_of(stage, run), *options])


def _alone() -> None:
    """A stage of one process, which nobody asks to save."""
    signal.signal(ASK, signal.SIG_IGN)
    _clean()


def _clean() -> None:
    """Forget what launchers say of ranks: this process too reads models and asks hubs."""
    if folder := os.environ.get(NODE_LOCAL):
        os.environ[NODE_LOCAL] = os.path.expandvars(folder)  # some name SLURM's variables
    clean = cleaned(os.environ)
    os.environ.clear()
    os.environ.update(clean)


def _train(decide: Callable[[Allocation, int], Orders]) -> None:
    """Train on this node of a job."""
    heard: list[int] = []
    signal.signal(ASK, lambda number, frame: heard.append(number))
    here = allocation(os.environ)
    _clean()
    num_gpus, problems = gpus_of(here)
    hello = {
        "job": here.job,
        "node_rank": here.node_rank,
        "num_gpus": num_gpus,
        "problems": problems,
    }
    if shutil.which("scontrol") is None:
        log.warning("there is no scontrol here: a job that is asked to end is not queued again")
    if here.node_rank:
        ordered = follow(here.hosts[0], here.port + 1, hello, _wrong_here)
        if not ordered.get("done"):
            _follower(ordered, here, num_gpus)
        return
    with ExitStack() as meets:
        nodes = meets.enter_context(meeting(here.port + 1, here.hosts, here.job))
        if problems:  # no need to prepare anything
            _require_alike(here, [hello, *nodes.everybody()])
        found = decide(here, num_gpus)
        if to_do(found.run, found.keys, "train") is None:
            nodes.everybody()
            nodes.agree({"done": True})
            log.info("%s: trained already", found.run.path)
            return
        with recorded(found.run, found.keys, "train"):
            with meets.pop_all():
                orders.begin(found, here)
                _require_alike(here, [hello, *nodes.everybody()])
                nodes.agree(found.to_json())
            found.run.preempted.unlink(missing_ok=True)
            judge = giving_up.judge(found.run)
            dataset = found.keys.dataset
            if train_here(found.run, dataset, here, num_gpus, lambda: bool(heard), judge):
                if judge():
                    raise GivenUp(found.run.title)
                queue_again(here.name)


def _follower(ordered: Message, here: Allocation, num_gpus: int) -> None:
    run = RunDir(Path(ordered["run"]))
    try:
        # Asked before it has begun, it begins: the first node alone ends a job.
        train_here(run, Path(ordered["dataset"]), here, num_gpus, lambda: False)
    except UserError as error:
        keep_error(run, "train", error)
        raise


def _wrong_here(ordered: Message) -> list[str]:
    """What this node does not see of what it is to train."""
    if ordered.get("done"):
        return []
    wanted = (RunDir(Path(ordered["run"])).recipe, Path(ordered["dataset"]))
    return [f"does not see {path}: is it on a shared disk?" for path in wanted if not path.exists()]


def _require_alike(here: Allocation, hellos: list[Message]) -> None:
    """See that nodes are fit, and have as many GPUs as each other.

    Raises:
        UserError: Naming each that is not.
    """
    wrong = [f"{here.hosts[h['node_rank']]}: {text}" for h in hellos for text in h["problems"]]
    counts = {here.hosts[hello["node_rank"]]: hello["num_gpus"] for hello in hellos}
    if not wrong and len(set(counts.values())) > 1:
        each = ", ".join(f"{host} {count}" for host, count in counts.items())
        wrong = [f"nodes have different numbers of GPUs ({each}): ask for as many on each"]
    if wrong:
        raise UserError("\n".join(wrong))


if __name__ == "__main__":
    entry(main)
