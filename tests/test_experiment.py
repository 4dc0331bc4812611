"""Which points an experiment has, and what is told before any of them runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.experiments import axes, points
from launch.experiments.commands import scale, size, sweep
from launch.experiments.giving_up import comparable, verdict
from launch.experiments.place import Place
from pressroom.console import UserError
from pressroom.experiment import Experiment, Point
from pressroom.planner.gpu_kinds import kind_of

ONE = (1, 1)
FOUR_A_NODE = Place(cluster=None, num_gpus=4, most_ranks=4, kind=kind_of("a100-80"))


@pytest.fixture
def asked(make_recipe: Callable[..., Any], output_of: Callable[..., tuple[str, int]]) -> Any:
    """What a dry run of a command says, on a machine of two CPUs."""
    make_recipe(evaluation={"every_steps": 2})

    def ask(command: Any, *arguments: str) -> str:
        return output_of(command, "recipe.yaml", *arguments, "--dry-run")[0]

    return ask


@pytest.fixture(autouse=True)
def _two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})


def wrong(ask: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as told:
        ask(*arguments)
    return str(told.value)


# Points


def test_scale_has_each_number_with_each_strategy_and_repeat_the_repeats_last() -> None:
    found = points.scale(
        [2, 1], FOUR_A_NODE.shape, repeats=2, strategies=["ddp", "fsdp"], short={"seed": 3}
    )
    assert len(found) == 8
    assert len({point.name for point in found}) == 8
    assert [p.values["repeat"] for p in found] == [1] * 4 + [2] * 4
    assert found[0].values == {"strategy": "ddp", "ranks": 1, "repeat": 1}
    assert found[3].overrides == {"seed": 3, "parallel.strategy": "fsdp"}


def test_models_of_one_name_have_folders_of_their_own() -> None:
    found = points.scale([1], FOUR_A_NODE.shape, repeats=1, models=["a/x", "b/x"], short={})
    assert [point.name for point in found] == ["x-1-ranks-repeat-1", "x-1-ranks-repeat-1-2"]


def test_a_grid_has_every_combination() -> None:
    found = points.sweep({"lora.r": [4, 8], "optimizer.learning_rate": [1e-3, 1e-2]}, ONE)
    assert [tuple(point.values.values()) for point in found] == [
        (4, 1e-3),
        (4, 1e-2),
        (8, 1e-3),
        (8, 1e-2),
    ]
    assert found[0].name == "1-r-4-learning_rate-0.001"


def test_random_points_are_the_same_each_time_and_differ_from_each_other() -> None:
    wide, _ = axes.parse_axes(["optimizer.learning_rate=1e-5..1e-2", "lora.r=4..64", "seed=1,2"])
    twice = [points.sweep(wide, ONE, number=200, seed=3) for _ in range(2)]
    assert twice[0] == twice[1] != points.sweep(wide, ONE, number=200, seed=4)
    values = [point.values for point in twice[0]]
    assert len({repr(each) for each in values}) == 200
    rates = [each["optimizer.learning_rate"] for each in values]
    assert min(rates) >= 1e-5
    assert max(rates) <= 1e-2
    assert sum(rate < 3.2e-4 for rate in rates) in range(70, 130)  # each factor as likely
    assert all(isinstance(each["lora.r"], int) and 4 <= each["lora.r"] <= 64 for each in values)
    few = points.sweep({"lora.r": [4, 8]}, ONE, number=9)
    assert len(few) == 2


def test_size_has_small_ones_first() -> None:
    found = points.size(["m/a", "m/b"], [1.0, 0.1], [], ONE)
    assert [point.name for point in found] == ["a-data-0.1", "a-data-1", "b-data-0.1", "b-data-1"]
    (longer, _) = points.size([], [], [1, 2], ONE)
    assert longer.overrides == {"optimizer.num_epochs": 1, "optimizer.num_steps": None}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lora.r", "not of the form"),
        ("lora.r=", "has no value"),
        ("lora.r=4,,8", "empty value between commas"),
        ("lora.r=4,4", "a value twice"),
        ("lora.r=8..4", "a range is LOW..HIGH"),
        ("lora.r=0..4", "a range is LOW..HIGH"),
        ("seed=1,!!python/x 2", "tag"),
    ],
)
def test_an_axis_that_is_none_is_told(text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        axes.parse_axes([text])


def test_one_value_is_an_override_and_every_wrong_axis_is_told() -> None:
    found, constant = axes.parse_axes(["seed=3", "lora.r=4,8", "name=a"])
    assert (found, constant) == ({"lora.r": [4, 8]}, ["seed=3", "name=a"])
    with pytest.raises(UserError) as told:
        axes.parse_axes(["lora.r=4,8", "lora.r=16,32", "seed"])
    assert str(told.value).count("\n") == 1


# Shapes


def test_a_machine_and_a_cluster_have_only_so_many() -> None:
    assert FOUR_A_NODE.shape(3) == (1, 3)
    with pytest.raises(UserError, match="8 GPUs: this machine has 4"):
        FOUR_A_NODE.shape(8)


def test_on_a_cluster_more_than_a_node_are_whole_nodes(home: Path) -> None:
    from launch.experiments.place import on_cluster
    from pressroom.cluster import Cluster

    text = "partition: p\ngpu: h100\ngpus_per_node: 4\ncpus_per_node: 32\ntime_limit: '1:00:00'\n"
    (home / "c.yaml").write_text(text)
    place = on_cluster(Cluster.load(home / "c.yaml"), "c.yaml")
    assert [place.shape(n) for n in (1, 2, 4, 8)] == [(1, 1), (1, 2), (1, 4), (2, 4)]
    with pytest.raises(UserError, match=r"6 GPUs: c\.yaml has 4 a node"):
        place.shape(6)
    half = place.cluster_of(1, 2)
    assert (half.nodes, half.gpus_per_node, half.cpus_per_node) == (1, 2, 16)


# What is told before anything runs


def test_scale_lists_its_points_with_derived_accumulation(asked: Any) -> None:
    said = asked(scale, "--points", "1,2", "--repeats", "1")
    assert "1-ranks-repeat-1: 4 global = 2 micro x 2 accumulation x 1 rank" in said
    assert "2-ranks-repeat-1: 4 global = 2 micro x 1 accumulation x 2 ranks" in said


def test_weak_scaling_keeps_the_batch_of_a_rank(asked: Any) -> None:
    said = asked(scale, "--points", "1,2", "--repeats", "1", "--weak")
    assert "2-ranks-repeat-1: 8 global = 2 micro x 2 accumulation x 2 ranks" in said


def test_every_mistake_of_scale_is_told_at_once(asked: Any) -> None:
    told = wrong(asked, scale, "--points", "1,3,5", "--steps", "4", "--strategies", "ddp,fspd")
    for words in (
        "--strategies fspd: no such strategy; did you mean fsdp?",
        "--points 3 ranks on CPUs: this machine has 2",
        "--points 5 ranks on CPUs: this machine has 2",
        "--warmup-steps 5: must be fewer than --steps, 4",
    ):
        assert words in told


def test_ranks_over_which_the_batch_does_not_divide_are_told_with_what_would(asked: Any) -> None:
    told = wrong(asked, scale, "--points", "1,2", "batch.micro_batch_size=4", "--repeats", "1")
    assert told.startswith("point 2-ranks-repeat-1: batch.global_batch_size: 4 rows")
    assert "world sizes that fit: 1" in told


def test_a_strategy_that_needs_gpus_is_told(asked: Any) -> None:
    told = wrong(asked, scale, "--points", "2", "--strategies", "fsdp,ddp", "--repeats", "1")
    assert "point fsdp-2-ranks-repeat-1: this machine has no GPU" in told


def test_an_unknown_key_is_told_once_and_a_refused_value_with_its_points(asked: Any) -> None:
    told = wrong(asked, sweep, "lora.rnk=4,8", "optimizer.learning_rate=1e-3,1e-2")
    assert told.count("unknown key") == 1
    assert "point" not in told
    told = wrong(asked, sweep, "optimizer.learning_rate=-1,1e-2")
    assert told.startswith("point 1-learning_rate-1: ")
    assert "must be greater than 0" in told


def test_an_empty_grid_and_a_range_without_a_number_are_told(asked: Any) -> None:
    assert "nothing varies" in wrong(asked, sweep, "lora.r=4")
    assert "add --random N" in wrong(asked, sweep, "optimizer.learning_rate=1e-4..1e-2")
    assert "nothing varies" in wrong(asked, size, "--data", "1")


def test_what_is_ranked_must_be_evaluated(asked: Any) -> None:
    told = wrong(asked, sweep, "lora.r=4,8", "evaluation.every_steps=null")
    assert "evaluation.every_steps: is required here" in told


def test_many_points_must_be_meant(asked: Any) -> None:
    many = f"seed={','.join(map(str, range(60)))}"
    assert "60 points" in wrong(asked, sweep, many)
    assert asked(sweep, many, "--yes").count("accumulation") == 60


def test_a_fraction_out_of_range_and_a_missing_model_are_told_together(asked: Any) -> None:
    told = wrong(asked, size, "--data", "0.5,2", "--models", "nowhere/at/all,also/not/there")
    assert "data.fraction: must be less than or equal to 1" in told
    assert "nowhere/at/all" in told


def test_a_dry_run_leaves_nothing(asked: Any, home: Path) -> None:
    asked(scale, "--points", "1")
    assert not (home / "experiments").exists()


# Hopeless points


GOOD = {2: 3.0, 4: 2.0, 6: 1.5}


def test_a_point_above_the_median_of_three_others_is_hopeless() -> None:
    assert verdict({2: 4.0, 4: 3.5}, [GOOD] * 3)
    assert verdict({2: 4.0, 4: 1.9}, [GOOD] * 3) is None
    assert verdict({2: 4.0, 4: 2.0}, [GOOD] * 3) is None  # as good as the median
    assert verdict({2: 1.0, 4: 9.0}, [GOOD] * 3) is None  # its lowest counts
    assert verdict({2: 4.0, 4: 3.5}, [GOOD, GOOD, {2: 1.0}]) is None  # one was not there
    assert verdict({}, [GOOD] * 3) is None


def test_only_points_that_see_the_same_rows_in_the_same_steps_are_compared(home: Path) -> None:
    from test_experiment_results import definition

    values = [
        {"lora.r": 4, "batch.global_batch_size": 4},
        {"lora.r": 8, "batch.global_batch_size": 4},
        {"lora.r": 8, "batch.global_batch_size": 8},
    ]
    every = [Point(name=f"p{n}", values=each, overrides=each) for n, each in enumerate(values)]
    asked_for = definition("sweep", every, {})
    assert [p.name for p in comparable(asked_for, "p0")] == ["p1"]
    assert Experiment.create(asked_for).definition() == asked_for
