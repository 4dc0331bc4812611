"""What the runs of an experiment say, as tables, pictures and a page; also of failures."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from pressroom.console import UserError
from pressroom.experiment import Definition, Experiment, Kind, Point
from pressroom.report import experiment_page
from pressroom.report.command import main as report
from pressroom.report.experiment_runs import results
from pressroom.report.experiment_scale import answer, sameness
from pressroom.report.experiment_size import fit

RECIPE: dict[str, Any] = {
    "name": "news",
    "memory": {"precision": "fp32"},
    "batch": {"global_batch_size": 8},
}
SCALE = {"weak": False, "steps": 5, "warmup_steps": 2, "repeats": 1, "tokens": 1e6}


def definition(
    kind: Kind, points: Sequence[Point], settings: dict[str, Any], **axes: list[Any]
) -> Definition:
    """A definition of points."""
    return Definition(
        kind=kind,
        name=f"news-{kind}",
        recipe=RECIPE,
        axes=axes or {"lora.r": [4, 8]},
        points=tuple(points),
        settings=settings,
        device="h100",
        cluster=None,
        key="k",
        command="pressroom scale news",
        created="2026-11-22T10:00:00+00:00",
        versions={"torch": "2"},
        commit="",
    )


def finished(
    experiment: Experiment,
    point: Point,
    *,
    seconds: float = 1.0,
    apart: float = 0.0,
    held_out: dict[int, float] | None = None,
    **changes: float,
) -> None:
    """Leave what a run of five steps leaves; the first two are slow."""
    run = experiment.run(point)
    run.path.mkdir(parents=True)
    run.recipe.write_text(yaml.safe_dump(RECIPE))
    rows: list[dict[str, float]] = [
        {
            "step": step,
            "loss": 5 - step / 10 + (apart if step == 4 else 0),
            "tokens": 1000,
            "trained_tokens": 900 + step,
            "step_seconds": seconds if step > 2 else 50.0,
            "mfu": 0.4,
            **changes,
        }
        for step in range(1, 6)
    ]
    rows += [{"step": step, "eval_loss": loss} for step, loss in (held_out or {}).items()]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.adapter.mkdir()


def failed(experiment: Experiment, point: Point) -> None:
    """Leave what a run leaves that failed."""
    run = experiment.run(point)
    run.path.mkdir(parents=True)
    run.recipe.write_text(yaml.safe_dump(RECIPE))
    run.error.write_text("train: rank 1 lost its GPU\n")


def scale_point(ranks: int, repeat: int = 1, **values: Any) -> Point:
    line = "-".join(map(str, values.values()))
    return Point(
        name=f"{line}{ranks}-ranks-repeat-{repeat}",
        values={**values, "ranks": ranks, "repeat": repeat},
        ranks_per_node=ranks,
        foretold={"tokens_per_second_per_gpu": 1100.0, "fits": ranks < 64, "parameters": 7e9},
    )


def told(experiment: Experiment) -> Any:
    found = experiment.definition()
    return answer(found, results(experiment, found))


def test_warm_up_is_left_out_and_efficiency_is_against_the_fewest(home: Path) -> None:
    every = [scale_point(1), scale_point(2), scale_point(2, 2)]
    experiment = Experiment.create(definition("scale", every, SCALE, ranks=[1, 2]))
    for point, seconds in zip(every, (1.0, 0.5, 1.0), strict=True):
        finished(experiment, point, seconds=seconds)
    one, two = told(experiment).figures
    assert one["tokens_per_second"] == {"mean": 1000, "min": 1000, "max": 1000, "repeats": 1}
    assert two["tokens_per_second"] == {"mean": 1500, "min": 1000, "max": 2000, "repeats": 2}
    assert two["efficiency"] == {"mean": 0.75, "min": 0.5, "max": 1.0, "repeats": 2}
    assert one["seconds_for_tokens"] == 1000
    assert two["gpu_hours_for_tokens"] == pytest.approx(1e6 / 1500 * 2 / 3600)
    assert two["predicted_tokens_per_second"] == 2200
    assert one["mfu"]["mean"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("apart", "changes", "words"),
    [
        (2e-4, {}, "losses differ: by 0.0002 nats at step 4, 0.0001 allowed"),
        (float("nan"), {}, "losses differ: by inf nats at step 4"),
        (0.0, {"trained_tokens": 7.0}, "other rows at step 1: 7 trained tokens, not 901"),
        (0.0, {"tokens": 7.0}, "other rows at step 1: 7 tokens, not 1,000"),
    ],
)
def test_a_point_that_trains_something_else_is_named(
    home: Path, apart: float, changes: dict[str, float], words: str
) -> None:
    every = [scale_point(1), scale_point(2), scale_point(4)]
    experiment = Experiment.create(definition("scale", every, SCALE, ranks=[1, 2, 4]))
    finished(experiment, every[0])
    finished(experiment, every[1], apart=5e-5)
    finished(experiment, every[2], apart=apart, **changes)
    (problem,) = told(experiment).problems
    assert problem == f"4-ranks-repeat-1 against 1-ranks-repeat-1: {words}" or (
        words in problem and "nan" in str(apart)
    )


def test_that_all_trained_the_same_is_said_and_not_of_weak_scaling(home: Path) -> None:
    every = [scale_point(1), scale_point(2)]
    experiment = Experiment.create(definition("scale", every, SCALE, ranks=[1, 2]))
    finished(experiment, every[0])
    finished(experiment, every[1], apart=5e-5)
    notes, problems = sameness(
        experiment.definition(), results(experiment, experiment.definition())
    )
    assert "All 2 finished points trained on the same rows in the same order, 8 a step" in notes[0]
    assert "5.0e-05" in notes[0]
    assert not problems
    weak = definition("scale", every, {**SCALE, "weak": True}, ranks=[1, 2])
    assert "Weak scaling" in sameness(weak, results(experiment, weak))[0][0]


def test_points_that_failed_do_not_fit_or_are_missing_are_shown_as_such(home: Path) -> None:
    every = [scale_point(n) for n in (1, 2, 4, 64)]
    experiment = Experiment.create(definition("scale", every, SCALE, ranks=[1, 2, 4, 64]))
    finished(experiment, every[0])
    failed(experiment, every[1])
    found = told(experiment)
    assert [row[-1] for row in found.rows] == ["", "failed", "missing", "does not fit"]
    assert found.problems == ["2-ranks-repeat-1: failed: train: rank 1 lost its GPU"]
    assert experiment_page.publish(experiment) == list(found.problems)
    page = experiment.report.read_text()
    assert "rank 1 lost its GPU" in page
    assert experiment.picture.read_bytes().startswith(b"\x89PNG")
    values = json.loads(experiment.results.read_text())
    assert [p["state"] for p in values["points"]] == [
        "finished",
        "failed",
        "missing",
        "does not fit",
    ]
    with experiment.table.open() as file:
        assert [row["state"] for row in csv.DictReader(file)][1] == "failed"


def test_an_experiment_that_has_not_begun_and_one_point_have_a_page(home: Path) -> None:
    kinds: list[tuple[Kind, dict[str, Any]]] = [
        ("scale", SCALE),
        ("sweep", {"gives_up": True}),
        ("size", {}),
    ]
    for kind, settings in kinds:
        point = scale_point(1)
        experiment = Experiment.create(definition(kind, [point], settings))
        for _ in range(2):
            assert experiment_page.publish(experiment) == []
            assert experiment.picture.is_file()
            if not experiment.run(point).path.is_dir():
                finished(experiment, point, held_out={2: 4.0, 4: 3.5})
        assert experiment_page.text(experiment)


def swept(home: Path, losses: dict[tuple[int, float], dict[int, float]]) -> Experiment:
    every = []
    for r, rate in losses:
        values = {"lora.r": r, "optimizer.learning_rate": rate}
        every.append(Point(name=f"r-{r}-{rate:g}", values=values, overrides=values))
    keys: dict[str, list[Any]] = {
        "lora.r": sorted({r for r, _ in losses}),
        "optimizer.learning_rate": sorted({rate for _, rate in losses}),
    }
    experiment = Experiment.create(definition("sweep", every, {"gives_up": True}, **keys))
    for point, held_out in zip(every, losses.values(), strict=True):
        finished(experiment, point, held_out=held_out)
    return experiment


def test_a_sweep_is_ranked_by_its_last_held_out_loss_and_the_given_up_come_last(
    home: Path, make_recipe: Callable[..., Any]
) -> None:
    recipe = make_recipe(lora={"r": 8})
    experiment = swept(
        home,
        {
            (4, 1e-3): {2: 4.0, 4: 3.0},
            (8, 1e-3): {2: 4.0, 4: 2.0},
            (16, 1e-3): {2: 1.0},
            (4, 1e-2): {2: 1.5, 4: 9.0},
        },
    )
    hopeless = experiment.path / "r-16-0.001"
    (hopeless / "adapter").rmdir()
    verdict = {"step": 2, "loss": 1.0, "median": 0.5, "others": 3}
    (hopeless / "given_up.json").write_text(json.dumps(verdict))
    (experiment.path / "r-8-0.001" / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    experiment_page.publish(experiment)
    values = json.loads(experiment.results.read_text())
    assert [row["point"] for row in values["rows"]] == [
        "r-8-0.001",
        "r-4-0.001",
        "r-4-0.01",
        "r-16-0.001",
    ]
    assert [row["rank"] for row in values["rows"]] == [1, 2, 3, None]
    assert values["best"] == "r-8-0.001"
    assert yaml.safe_load(experiment.best.read_text()) == recipe.to_dict()
    assert "above the median 0.5000 of 3 others" in experiment_page.text(experiment)
    assert "<image" not in experiment.report.read_text()  # the page's own policy would block it


def test_report_makes_everything_again_from_the_runs_alone(
    home: Path, output_of: Callable[..., tuple[str, int]]
) -> None:
    every = [scale_point(1), scale_point(2)]
    experiment = Experiment.create(definition("scale", every, SCALE, ranks=[1, 2]))
    for point in every:
        finished(experiment, point)
    experiment_page.publish(experiment)
    before = json.loads(experiment.results.read_text())
    for path in experiment_page.files(experiment):
        path.unlink()
    said, _ = output_of(report, experiment.title)
    assert str(experiment.report) in said
    assert json.loads(experiment.results.read_text()) == before
    assert output_of(report, "news-scale")[0] == said
    (experiment.path / "experiment.json").write_text("{}")
    with pytest.raises(UserError, match=r"experiment\.json: missing or damaged"):
        output_of(report, str(experiment.path))
    with pytest.raises(UserError, match="no such run"):
        output_of(report, "nothing")


def test_a_law_needs_two_points_for_each_number_and_says_how_far_it_is_off() -> None:
    sizes = [1e6, 4e6, 16e6]
    tokens = [1e7, 1e8]
    grid = [(n, d) for n in sizes for d in tokens]
    losses = [30 * n**-0.1 * d**-0.05 for n, d in grid]
    over = {"parameters": [n for n, _ in grid], "tokens": [d for _, d in grid]}
    law = fit(losses, over)
    assert law
    assert law.exponents == pytest.approx({"parameters": -0.1, "tokens": -0.05})
    assert law.residual == pytest.approx(0, abs=1e-9)
    assert fit(losses[:5], {k: v[:5] for k, v in over.items()}) is None
    one = fit([4.0, 3.0, 2.4, 2.1], {"tokens": [1, 2, 4, 8], "parameters": [7, 7, 7, 7.0]})
    assert one
    assert list(one.exponents) == ["tokens"]
    assert 0.01 < one.residual < 0.05
    assert "off by" in str(one)
