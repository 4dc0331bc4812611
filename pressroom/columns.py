"""What the fields of an article are called in a file of articles."""

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Name = Annotated[str, Field(min_length=1)]


@dataclass(
    frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True)
)
class Columns:
    """Field -> the column of a Parquet or Arrow file, the key of a JSON object."""

    title: Name = "title"
    """The headline."""
    description: Name = "description"
    """The text that the model learns to write."""
    url: Name = "url"
    """Where the article stands; it tells articles apart. Optional in a file."""
    published_at: Name = "published_at"
    """Day or time of publication, for `held_out: DATE`. Optional in a file."""
    category: Name = "category"
    """What it is about; figures are told by it. Optional in a file."""
    source: Name = "source"
    """The outlet; figures are told by it. Optional in a file."""
