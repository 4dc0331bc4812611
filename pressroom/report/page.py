"""A run directory -> report.html: one file that needs no other.

Made from what is there, also for a run that failed or has only begun; what cannot be read is
named on the page. Whatever comes from a file passes `console.redact` and is escaped.
"""

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pressroom import standing
from pressroom.console import UserError, harmless, log, redact
from pressroom.dataset import Manifest
from pressroom.files import publish_text
from pressroom.recipe import Recipe
from pressroom.report import curves, evaluated, headline, metrics, sections
from pressroom.report.metrics import Series
from pressroom.report.sections import Section
from pressroom.run_dir import RunDir
from pressroom.standing import built


def publish(run: RunDir) -> None:
    """Write the page of a run, in place of the one that was there.

    Raises:
        UserError: The run has no recipe.
        OSError: It cannot be written.
    """
    publish_text(run.report, render(run))


def try_publish(run: RunDir) -> None:
    """`publish`, or a warning: no training fails by its pictures."""
    try:
        publish(run)
    except Exception as error:
        log.warning("%s was not written: %s: %s", run.report, type(error).__name__, error)


def render(run: RunDir) -> str:
    """The page of a run, as HTML.

    Raises:
        UserError: The run has no recipe.
    """
    run = RunDir(run.path.absolute())
    if not run.recipe.is_file():
        raise UserError(f"{run.path}: has no run in it: no recipe.yaml")
    notes: list[str] = []
    recipe = built(run.recipe, run.load_recipe, notes)
    facts = built(run.environment, partial(sections.json_of, run.environment), notes)
    manifest, articles = _dataset(run, notes) if facts else (None, None)
    counted = partial(standing.num_steps, recipe, manifest) if recipe else lambda: None
    num_steps = built(run.recipe, counted, [])
    series, damaged = built(run.metrics, partial(metrics.read, run.metrics), notes) or ({}, 0)
    if damaged:
        lines = "line is" if damaged == 1 else "lines are"
        notes.append(f"{run.metrics.name}: {damaged:,} {lines} damaged and left out of this page")
    page: dict[str, Any] = {
        "name": recipe.name if recipe else run.path.parent.name,
        "run": run.title,
        "headline": headline.headline(run, series, num_steps),
        "figures": headline.figures(run, series, facts or {}),
        "sections": _sections(run, recipe, articles, series, notes),
        "made": f"{datetime.now():%Y-%m-%d %H:%M}",
    }
    return _environment().get_template("page.html").render(**page, notes=notes)


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("pressroom.report"),
        autoescape=True,
        finalize=_clean,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _clean(value: Any) -> Any:
    """What a file says, without secrets and control characters; pictures are our own."""
    return value if isinstance(value, Markup) else harmless(redact(str(value)))


def _dataset(run: RunDir, notes: list[str]) -> tuple[Manifest | None, Section | None]:
    """What a run was trained on, and what stands about it."""
    folder = built(run.environment, lambda: run.dataset, notes)
    manifest = built(folder, partial(Manifest.read, folder), notes) if folder else None
    if folder is None or manifest is None:
        return None, None
    return manifest, built(folder, partial(sections.dataset, manifest), notes)


def _sections(
    run: RunDir,
    recipe: Recipe | None,
    articles: Section | None,
    series: Mapping[str, Series],
    notes: list[str],
) -> list[Section]:
    """What is there, in the order in which people ask."""
    levels = {}
    if recipe and recipe.optimizer.max_grad_norm:
        levels["grad_norm"] = ("clipped to", recipe.optimizer.max_grad_norm)
    foretold = built(run.summary, partial(sections.predicted, run), [])
    if foretold and "peak_in_step_gib" in foretold:
        levels["peak_memory_gib"] = ("predicted", foretold["peak_in_step_gib"])
    draw = partial(curves.of_run, series, levels)
    found = [
        built(run.evaluation, partial(sections.evaluation, run), notes),
        *(built(run.evaluation, partial(evaluated.groups, run), notes) or []),
        *(built(run.evaluation, partial(evaluated.written, run), notes) or []),
        Section("How it went", pictures=built(run.metrics, draw, notes) or ()),
        built(run.samples, partial(sections.written, run), notes),
        built(run.summary, partial(sections.summary, run), notes),
        built(run.merge_report, partial(sections.merge, run), notes),
        built(run.path, partial(sections.outputs, run), notes),
        built(run.stages_file, partial(sections.stages, run), notes),
        articles,
        built(run.environment, partial(sections.environment, run), []),
        built(run.recipe, partial(sections.recipe, run), notes),
    ]
    return [section for section in found if section and not section.is_empty]
