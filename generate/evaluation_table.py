"""An evaluation as text for a person. Pure functions of what `evaluate` found."""

from collections.abc import Sequence
from typing import Any

from generate.copies import LONG, SHARE
from generate.shared_runs import RUN
from generate.written import DISTINCT, quantiles

_SHOWN = 3
_MOST_OF_A_RUN = 160


def table(result: dict[str, Any]) -> str:
    """Everything that was found."""
    parts = []
    if "perplexity" in result:
        parts.append(_perplexities(result))
        parts += [_groups(name, rows) for name, rows in result["by"].items()]
    if "written" in result:
        parts.append(_written(result["written"]))
    return "\n\n".join(parts)


def _perplexities(result: dict[str, Any]) -> str:
    base = result["perplexity"]["base"]
    lines = [
        f"held-out perplexity ({result['articles']} articles, "
        f"{result['trained_tokens']:,} trained tokens)",
        f"  {'':30}{'trained tokens':>16}{'description':>22}{'loss':>10}",
    ]
    for name, row in result["perplexity"].items():
        cells = [
            f"{row[kind]:.2f}" + ("" if name == "base" else f" ({row[kind] / base[kind] - 1:+.0%})")
            for kind in ("trained", "description")
        ]
        label = f"{name} (to compare)" if name == "unquantized base" else name
        loss = result["loss"][name]["trained"]
        lines.append(f"  {label:30}{cells[0]:>16}{cells[1]:>22}{loss:>10.3f}")
    return "\n".join(lines)


def _groups(name: str, rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"by {name}: loss of a trained token, nats (± one standard error over articles)",
        f"  {'':30}{'articles':>9}{'tokens':>10}{'base':>8}{'tuned':>8}{'change':>16}",
    ]
    for row in rows:
        error = "" if row["error"] is None else f" ± {row['error']:.2f}"
        change = f"{row['change']:+.2f}{error}"
        label = _short(row["name"], 29)
        lines.append(
            f"  {label:30}{row['articles']:>9,}{row['tokens']:>10,}{row['base']:>8.2f}"
            f"{row['tuned']:>8.2f}{change:>16}"
        )
    return "\n".join(lines)


def _written(found: dict[str, Any]) -> str:
    texts, real = found["texts"], len(found["words"]["real"])
    ended = found["ended"]
    given = f"what stands in {found['file']}" if "file" in found else "what it writes"
    lines = [f"{given}: {texts:,} texts, beside {real:,} real descriptions"]
    lines.append(f"  {'':40}{'written':>18}{'real':>18}")
    if ended is not None:
        lines.append(f"  {'ended by itself':40}{f'{ended:,} ({ended / max(texts, 1):.0%})':>18}")
    lines.append(_row("words: median (10 %, 90 %)", found["words"], _spread))
    grams = ", ".join(map(str, DISTINCT))
    lines.append(_row(f"distinct {grams}-grams of all", found["distinct"], _shares))
    share = f"tokens in runs of {RUN} of a trained article"
    lines.append(_row(share, found["shared"], lambda value: f"{value:.1%}"))
    copies = f"near-copies ({SHARE:.0%} of one, or {LONG} in a run)"
    lines.append(_row(copies, found["near_copies"], str))
    for row in found["likest"][:_SHOWN]:
        run = _short(row["run"], _MOST_OF_A_RUN)
        kind = "near-copy" if row["near_copy"] else "likest"
        lines.append(
            f"  {kind}: text {row['id']} has {row['tokens']} of its {row['of_tokens']} tokens from "
            f"article {row['article']}, {row['longest']} in a run: {run}"
        )
    return "\n".join(lines)


def _short(text: str, most: int) -> str:
    """A text on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _row(label: str, both: dict[str, Any], show: Any) -> str:
    return f"  {label:40}{show(both['written']):>18}{show(both['real']):>18}"


def _spread(lengths: Sequence[int]) -> str:
    middle, low, high = quantiles(lengths)
    return f"{middle:.0f} ({low:.0f}, {high:.0f})"


def _shares(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values) or "-"
