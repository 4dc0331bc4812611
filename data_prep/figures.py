"""What is in a dataset and what was checked, as text. Pure functions of figures."""

from collections.abc import Mapping, Sequence

import numpy as np

from data_prep.audit import Split, Verdict

WHOLE = "every file has the bytes that were written (sha256)"


def figures(splits: Mapping[str, Split], sequence_length: int) -> str:
    """A table with a column for each split."""
    columns = [_figures(split, sequence_length) for split in splits.values()]
    lines = [["", *splits], *([name, *(c[name] for c in columns)] for name in columns[0])]
    return "\n".join(
        f"  {name:<26}" + "".join(f"{value:>12}" for value in values) for name, *values in lines
    )


def _figures(split: Split, sequence_length: int) -> dict[str, str]:
    tokens, rows = int(split.tokens_R.sum()), len(split.tokens_R)
    pieces = len(split.lengths_P)
    lengths = split.lengths_P if pieces else np.zeros(1)
    return {
        "articles": f"{split.articles:,}",
        "pieces in which they stand": f"{pieces:,}",
        "tokens": f"{tokens:,}",
        "of them trained on": f"{split.trained_tokens / max(tokens, 1):.1%}",
        f"rows of {sequence_length:,}": f"{rows:,}",
        "of their room used": f"{tokens / max(rows * sequence_length, 1):.1%}",
        "tokens of a piece: least": f"{lengths.min():,.0f}",
        "  median": f"{np.median(lengths):,.0f}",
        "  95th percentile": f"{np.percentile(lengths, 95):,.0f}",
        "  most": f"{lengths.max():,.0f}",
    }


def report(verdicts: Sequence[Verdict]) -> str:
    """One line a check."""
    lines = []
    for verdict in verdicts:
        if verdict.faults:
            more = f" and {verdict.faults - 1:,} more" if verdict.faults > 1 else ""
            lines.append(f"  ✗ {verdict.claim}\n      not so: {verdict.first}{more}")
        else:
            lines.append(f"  ✓ {verdict.claim}")
    return "\n".join(lines)
