"""What a sweep varies, as people type it: `key=1e-4,2e-4` and `key=1e-5..1e-3`.

Pure functions. Knows nothing of which keys there are.
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pressroom.console import UserError
from pressroom.yaml_source import Source


@dataclass(frozen=True)
class Range:
    """Numbers between two ends, drawn so that each factor is as likely as another."""

    low: float
    high: float

    def draw(self, source: random.Random) -> float | int:
        """One of them: three digits, or a whole number between whole ends."""
        drawn = math.exp(source.uniform(math.log(self.low), math.log(self.high)))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return min(max(round(drawn), self.low), self.high)
        return min(max(float(f"{drawn:.3g}"), self.low), self.high)

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"


Axis = list[Any] | Range


def parse_axes(texts: Sequence[str]) -> tuple[dict[str, Axis], list[str]]:
    """Arguments of a sweep -> the axes, and the overrides, which have one value.

    >>> parse_axes(["lora.r=16,64", "lora.target_modules=[q_proj,v_proj],all-linear", "seed=3"])[0]
    {'lora.r': [16, 64], 'lora.target_modules': [['q_proj', 'v_proj'], 'all-linear']}

    Raises:
        UserError: Naming every argument that is none.
    """
    axes: dict[str, Axis] = {}
    overrides, problems = [], []
    for text in texts:
        key, equals, values = text.partition("=")
        try:
            if not equals or not key:
                raise UserError("is not of the form key=value,value")
            axis = _axis(values)
            if key in axes:
                raise UserError("given twice")
            if isinstance(axis, list) and len(axis) == 1:
                overrides.append(text)
            else:
                axes[key] = axis
        except UserError as error:
            problems.append(f"command line: {text}: {error}")
    if problems:
        raise UserError("\n".join(problems))
    return axes, overrides


def _axis(text: str) -> Axis:
    ends = re.fullmatch(r"([-+.\deE]+?)\.\.([-+.\deE]+)", text)
    if ends:
        low, high = (_value(end) for end in ends.groups())
        numbers = isinstance(low, int | float) and isinstance(high, int | float)
        if not numbers or not 0 < low < high:
            raise UserError("a range is LOW..HIGH, both above zero")
        return Range(low, high)
    words = split(text)
    if not text or "" in words:
        raise UserError("has no value" if not text else "has an empty value between commas")
    found = [_value(word) for word in words]
    if len({repr(value) for value in found}) < len(found):
        raise UserError("has a value twice")
    return found


def split(text: str) -> list[str]:
    """Text at its commas, but not at those inside brackets or quotes.

    >>> split("[a,b],c,'d,e'")
    ['[a,b]', 'c', "'d,e'"]
    """
    words, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
            if letter == "," and not depth:
                words.append("")
                continue
        words[-1] += letter
    return [word.strip() for word in words]


def _value(text: str) -> Any:
    source = Source("command line")
    value = source.parse(text, text)
    if source.problems:
        raise UserError(source.problems[0][1])
    return value
