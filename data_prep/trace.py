"""What became of an article: `pressroom trace ARTICLE...`.

Line, shard and rows in every dataset, or why it was rejected; the runs that were trained on it,
and their models. Knows nothing of how a dataset is made.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from data_prep.sightings import Sighting, Training, datasets, sightings, trainings
from pressroom import takedown
from pressroom.console import UserError, entry, harmless, say
from pressroom.files import home
from pressroom.identity import meant

_STATES = {"train": "trained on", "held_out": "held out", "rejected": "rejected"}


@click.command()
@click.argument("articles", metavar="ARTICLE...", nargs=-1, required=True)
@click.option(
    "--takedown",
    "listed_in",
    metavar="FILE",
    default=takedown.DEFAULT,
    show_default=True,
    help="The list of articles that must be nowhere.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def main(articles: tuple[str, ...], listed_in: str, as_json: bool) -> None:
    """Where an article is, or why not, and what was trained on it. An ARTICLE is its id or URL.

    Looks through all datasets and runs in this home. Ends with 1 when one that is taken down is
    still in something, or may be, and when one that is not is nowhere.
    """
    ids = _ids(articles)
    path = home() / Path(listed_in).expanduser()
    listed = takedown.read(path)
    if not path.exists() and listed_in != takedown.DEFAULT:
        raise UserError(f"--takedown {path}: no such file")
    looked, unread, found = [], [], []
    for folder in datasets():
        try:
            found += sightings(folder, list(ids))
            looked.append(folder)
        except UserError as error:
            unread.append(str(error))
    runs, unknown = trainings()
    known = {name: _article(name, asked, found, runs, path, listed) for name, asked in ids.items()}
    if as_json:
        answer = {"articles": list(known.values()), "looked_through": [str(f) for f in looked]}
        say(json.dumps(answer | {"not_looked_through": unread + unknown}, indent=2))
    else:
        nowhere = "not in what could be read" if unread else "nowhere"
        say("\n\n".join(harmless(_text(article, nowhere)) for article in known.values()))
        say(harmless(_scope(looked, unread + unknown)))
    for article in known.values():
        if (article["still_in"] or unread) if article["takedown"] else not article["found"]:
            sys.exit(1)


def _ids(articles: Sequence[str]) -> dict[str, str]:
    """Id -> what was asked for.

    Raises:
        UserError: Naming everything that is neither an id nor a URL.
    """
    ids, problems = {}, []
    for article in articles:
        try:
            ids[meant(article)] = article
        except ValueError as error:
            problems.append(f"{article!r:.80}: {error}")
    if problems:
        raise UserError("\n".join(problems))
    return ids


def _article(
    name: str,
    asked: str,
    found: Sequence[Sighting],
    runs: dict[Path, list[Training]],
    path: Path,
    listed: dict[str, int],
) -> dict[str, Any]:
    """All that is known of one article, as plain values."""
    places, still_in = [], []
    for sighting in (s for s in found if s.id == name):
        plain: dict[str, Any] = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(sighting).items()
            if key != "id" and value not in ("", ())
        }
        if sighting.state != "rejected":
            trained = runs.get(sighting.dataset.resolve(), [])
            plain["runs"] = [
                {"run": str(t.run), "standing": t.standing, "models": [str(m) for m in t.models]}
                for t in trained
            ]
            still_in.append(str(sighting.dataset))
            if sighting.state == "train":
                still_in += [str(p) for t in trained for p in (t.models or (t.run,))]
        places.append(plain)
    on_list = f"{path}:{listed[name]}" if name in listed else None
    told = {"takedown": on_list, "still_in": list(dict.fromkeys(still_in)) if on_list else []}
    return {"asked": asked, "id": name, "found": places, **told}


def _text(article: dict[str, Any], nowhere: str) -> str:
    """One article for a person."""
    same = article["asked"] == article["id"]
    lines = [article["id"] + ("" if same else f"  {article['asked']}")]
    for place in article["found"]:
        lines.append(f"  {place['dataset']}: {_STATES.get(place['state'], place['state'])}")
        lines.append(f"    read at {_one_line(place['place'])}")
        if place["state"] == "rejected":
            detail = f" ({_one_line(place['detail'])})" if "detail" in place else ""
            lines.append(f"    {place['cause']}{detail}")
            continue
        rows = ", ".join(map(str, place["rows"]))
        lines.append(f"    in {place['shard']}, its row{'s' * (len(place['rows']) > 1)} {rows}")
        what = "trained on it" if place["state"] == "train" else "measured by it, not trained on it"
        for run in place["runs"]:
            models = "".join(f", {model}" for model in run["models"])
            lines.append(f"    {what}: {run['run']} ({run['standing']}){models}")
        if not place["runs"]:
            lines.append("    no run was trained on this dataset")
    if not article["found"]:
        lines.append(f"  {nowhere}: in no dataset, and none has rejected it")
    if article["takedown"]:
        lines.append(f"  taken down by {article['takedown']}")
        lines += [f"    still in: {path}" for path in article["still_in"]]
    return "\n".join(lines)


def _one_line(text: str) -> str:
    """Text that was read from a file, which cannot look like another line of ours."""
    return text.replace("\n", "\\n")


def _scope(looked: Sequence[Path], unread: Sequence[str]) -> str:
    """What was looked through, and what could not be."""
    names = ", ".join(map(str, looked)) or f"nothing: no dataset in {home() / 'data'}"
    return "\n".join([f"\nlooked through: {names}", *(f"not looked through: {w}" for w in unread)])


if __name__ == "__main__":
    entry(main)
