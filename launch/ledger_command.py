"""`pressroom ledger`: where the GPU-hours of runs and experiments went.

Knows nothing of how hours are counted.
"""

import calendar
import difflib
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import click

from launch.ledger import BY, of_runs, rows, totals
from launch.ledger_table import as_csv, plain, table
from pressroom.console import UserError, entry, log, say
from pressroom.experiment import experiments_of
from pressroom.files import home, publish_text
from pressroom.run_dir import RunDir
from pressroom.run_place import EXPERIMENT
from pressroom.runs import every_run, named

_DATES = ("%Y-%m", "%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S")


@click.command()
@click.argument("names", metavar="[RUN|FOLDER ...]", nargs=-1)
@click.option("--by", default="run", show_default=True, help=f"A row for each {', '.join(BY)}.")
@click.option("--since", help="Only what began then or later: 2026-11 or 2026-11-22.")
@click.option("--until", help="Only what began then or before, that month or day included.")
@click.option("--user", help="Only runs that are this user's.")
@click.option("--price", type=float, help="Of a GPU-hour, in any currency: adds the cost.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Also write a CSV file.")
def main(
    names: tuple[str, ...],
    by: str,
    since: str | None,
    until: str | None,
    user: str | None,
    price: float | None,
    as_json: bool,
    csv_file: Path | None,
) -> None:
    """Where the GPU-hours went: of all runs, or of some, of a folder of them, of an experiment.

    A row's parts add up to what was allocated. A part that cannot be known is left empty.
    """
    wrong = _wrong(by, price, csv_file)
    first, last = _date("--since", since, wrong), _date("--until", until, wrong)
    if first and last and first[0] >= last[1]:
        wrong.append(f"--since {since}: is after --until {until}")
    runs = _runs(names, wrong)
    runs = _of_user(runs, user, wrong)
    if wrong:
        raise UserError("\n".join(wrong))
    start = first[0].timestamp() if first else float("-inf")
    end = last[1].timestamp() if last else float("inf")
    spells = [spell for spell in of_runs(runs) if start <= spell.begun < end]
    found, sums = rows(spells, by, price), totals(spells, price)
    if csv_file:
        publish_text(csv_file, as_csv(found))
    if as_json:
        every = {"by": by, "since": since, "until": until, "price": price}
        lists = {"rows": [plain(r) for r in found], "totals": [plain(r) for r in sums]}
        say(json.dumps({**every, **lists}, indent=2, ensure_ascii=False))
    elif found:
        say(table(found, sums, by))
    else:
        then = " then" if since or until else ""
        log.info("%d runs under %s, which held nothing%s", len(runs), home().absolute(), then)


def _wrong(by: str, price: float | None, csv_file: Path | None) -> list[str]:
    wrong = []
    if by not in BY:
        close = difflib.get_close_matches(by, BY, n=1)
        hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(BY)}"
        wrong.append(f"--by {by}: no such rows; {hint}")
    if price is not None and not 0 <= price < float("inf"):
        wrong.append(f"--price {price:g}: must be 0 or more")
    if csv_file and (csv_file.is_dir() or not csv_file.absolute().parent.is_dir()):
        wrong.append(f"--csv {csv_file}: must be a file, in a folder that is there")
    return wrong


def _date(option: str, text: str | None, wrong: list[str]) -> tuple[datetime, datetime] | None:
    """The first moment of a month, a day or a time, and the first one after it."""
    for form in _DATES if text else ():
        try:
            found = datetime.strptime(str(text), form)
        except ValueError:
            continue
        days = calendar.monthrange(found.year, found.month)[1]
        lasts = {_DATES[0]: timedelta(days=days), _DATES[1]: timedelta(days=1)}
        return found, found + lasts.get(form, timedelta(seconds=1))
    if text:
        wrong.append(f"{option} {text}: no date; as in 2026-11, 2026-11-22 or 2026-11-22T10:00")
    return None


def _runs(names: Sequence[str], wrong: list[str]) -> list[RunDir]:
    """The runs that are asked for; of an experiment, its points."""
    found = [] if names else every_run()
    for name in names:
        try:
            if folders := _experiments(name):
                found += [run for folder in folders for run in _below(folder)]
            else:
                found += _below(Path(name)) or named(name)
        except UserError as error:
            known = sorted({each.path.parent.name for each in experiments_of()})
            also = f"; nor an experiment ({', '.join(known)})" if known else ""
            wrong.append(f"{error}{also}")
    return found


def _experiments(name: str) -> list[Path]:
    """The experiments that a folder, NAME/STAMP or NAME stands for."""
    below = home() / "experiments"
    for path in (Path(name), home() / name, below / name):
        if (path / EXPERIMENT).is_file():
            return [path]
    if (home() / "runs" / name).is_dir():
        return []
    return [each.path for each in experiments_of(Path(name).name)]


def _below(folder: Path) -> list[RunDir]:
    """The runs in a folder that is none itself."""
    if not folder.is_dir() or (folder / "recipe.yaml").is_file():
        return []
    recipes = [*folder.glob("*/recipe.yaml"), *folder.glob("*/*/recipe.yaml")]
    return [RunDir(path.parent) for path in sorted(recipes)]


def _of_user(runs: list[RunDir], user: str | None, wrong: list[str]) -> list[RunDir]:
    if user is None or not runs:
        return runs
    owners = {run.path: _owner(run.path) for run in runs}
    if user not in owners.values():
        known = sorted(set(owners.values()))
        close = difflib.get_close_matches(user, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"they are of: {', '.join(known)}"
        wrong.append(f"--user {user}: has none of these runs; {hint}")
    return [run for run in runs if owners[run.path] == user]


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:
        return str(path.stat().st_uid)


if __name__ == "__main__":
    entry(main)
