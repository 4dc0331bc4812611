"""A cluster file is read strictly: what it alone shows to be wrong is told with its line."""

import re
from pathlib import Path

import pytest

from pressroom.cluster import Cluster, minutes
from pressroom.console import UserError

EXAMPLE = Path(__file__).parents[1] / "slurm" / "cluster.example.yaml"
GOOD = "partition: train\ngpu: h100\ngpus_per_node: 8\nnodes: 2\ntime_limit: 12:00:00\n"


def load(tmp_path: Path, text: str = GOOD, *overrides: str) -> Cluster:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return Cluster.load(path, overrides)


def errors(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def test_the_shipped_example_loads_and_names_every_key() -> None:
    cluster = Cluster.load(EXAMPLE)
    assert cluster.world_size == 16
    text = EXAMPLE.read_text()
    for name in Cluster.__pydantic_fields__:
        assert f"\n{name}:" in text, name


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("partion: x", "c.yaml:6: partion: unknown key; did you mean partition?"),
        ("gpu: h10", "c.yaml:2: gpu: h10: no such GPU kind"),
        (
            "time_limit: 12h",
            "c.yaml:5: time_limit: must be hours:minutes:seconds, as in 12:00:00 and 2-00:00:00 "
            '(two days), not "12h"',
        ),
        ("time_limit: 720", "c.yaml:5: time_limit: must be hours:minutes:seconds"),
        ("time_limit: 1:75:00", "c.yaml:5: time_limit: must be hours:minutes:seconds"),
        ("time_limit: 0:00:00", "c.yaml:5: time_limit: must be hours:minutes:seconds"),
        ("cpu_jobs: {time_limit: 8h}", "c.yaml:6: cpu_jobs.time_limit: must be hours:minutes"),
        ("gpus_per_node: -1", "c.yaml:3: gpus_per_node: must be greater than or equal to 0"),
        ("nodes: two", 'c.yaml:4: nodes: must be a whole number, not "two"'),
        ("cpus_per_node: 4", "c.yaml:6: cpus_per_node: 4 for 8 GPUs: at least one each"),
        ("constraint: a & b", "c.yaml:6: constraint: 'a & b': must be one word, without spaces"),
        ('partition: ""', "c.yaml:1: partition: '': must be one word, without spaces"),
        (
            "setup: [module load cuda, '#SBATCH --exclusive']",
            "c.yaml:6: setup[1]: #SBATCH --exclusive: sbatch would not read it; every option has",
        ),
        (
            "container: apptainer exec x.sif python3.11",
            "c.yaml:6: container: ends in python3.11, which is put behind it: leave that out",
        ),
        (
            "shared: [/shared, scratch]",
            "c.yaml:6: shared[1]: scratch: must be an absolute path, from / on",
        ),
        (
            "node_local: scratch",
            "c.yaml:6: node_local: scratch: must be an absolute path, or begin with a $VARIABLE",
        ),
        (
            "signal_seconds: 43200",
            "c.yaml:6: signal_seconds: 43200 is not less than time_limit 12:00:00, 43200 seconds",
        ),
        (
            "environment: {NCCL_IB_DISABLE: 1}",
            'c.yaml:6: environment.NCCL_IB_DISABLE: must be text, not 1: "1"',
        ),
        ("environment: {a-b: x}", "c.yaml:6: environment.a-b: is no name of a variable"),
        (
            "environment: {HF_TOKEN: x}",
            "c.yaml:6: environment.HF_TOKEN: is a secret: export it in the shell that submits",
        ),
    ],
)
def test_each_wrong_key_is_told_once_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    key = line.partition(":")[0]
    text = re.sub(rf"(?m)^{key}:.*$", line, GOOD)
    (told,) = errors(tmp_path, text if text != GOOD else GOOD + line)
    assert told.startswith(message)


def test_what_is_wrong_together_is_told_together(tmp_path: Path) -> None:
    text = "gpus_per_node: 8\nnodes: 0\ntime_limit: 5\nshared: [x]\nsetup: ['#SBATCH -x']\n"
    told = [line.split(": ")[:2] for line in errors(tmp_path, text)]
    assert told == [
        ["c.yaml", "partition"],
        ["c.yaml:1", "gpu"],
        ["c.yaml:2", "nodes"],
        ["c.yaml:3", "time_limit"],
        ["c.yaml:4", "shared[0]"],
        ["c.yaml:5", "setup[0]"],
    ]


def test_a_cluster_of_cpus_needs_no_kind_of_gpu(tmp_path: Path) -> None:
    cluster = load(tmp_path, "partition: cpu\ngpus_per_node: 0\nnodes: 3\ntime_limit: 1:00:00\n")
    assert cluster.world_size == 3
    missing = GOOD.replace("gpu: h100\n", "")
    assert errors(tmp_path, missing) == ["c.yaml:1: gpu: is required where gpus_per_node is not 0"]


def test_overrides_are_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^command line: cpus_per_node: 2 for 8 GPUs"):
        load(tmp_path, GOOD, "cpus_per_node=2")


def test_places_of_variables_and_absolute_ones(tmp_path: Path) -> None:
    for place in ("/scratch/$SLURM_JOB_ID", "$TMPDIR"):
        assert load(tmp_path, GOOD, f"node_local={place}").node_local == place


def test_minutes_round_up() -> None:
    assert [minutes(t) for t in ("0:00:01", "1:00:00", "2-00:30:00")] == [1, 60, 2910]
