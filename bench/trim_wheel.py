"""A bitsandbytes wheel with one CUDA library in place of one for each CUDA, ROCm and XPU.

    python bench/trim_wheel.py FOLDER/bitsandbytes-0.50.2-....whl 130

The wheel is rewritten in place: 43 MB become 3 or 4. Knows nothing of pip.
"""

import csv
import difflib
import io
import re
import zipfile
from pathlib import Path

import click

from pressroom.console import UserError, entry, say

_LIBRARY = re.compile(r"libbitsandbytes_((?:cuda|rocm|xpu)\w*)\.so$")


def trim(wheel: Path, cuda: str) -> None:
    """Drop all accelerators' libraries but one, and their lines in RECORD.

    Args:
        wheel: The file, rewritten.
        cuda: The version whose library is kept, as in its name: 130.

    Raises:
        UserError: It is no wheel, or has no such library.
    """
    partial = wheel.with_suffix(".partial")
    try:
        with zipfile.ZipFile(wheel) as old:
            dropped = _others(wheel, old.namelist(), cuda)
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
                for entry_ in old.infolist():
                    if entry_.filename in dropped:
                        continue
                    content = old.read(entry_)
                    if entry_.filename.endswith(".dist-info/RECORD"):
                        content = _without(content.decode(), dropped).encode()
                    new.writestr(entry_, content, zipfile.ZIP_DEFLATED)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{wheel}: not a wheel that can be read: {error}") from None
    partial.replace(wheel)


def _others(wheel: Path, names: list[str], cuda: str) -> set[str]:
    """Names of the libraries that are not kept."""
    found = {match[1]: name for name in names if (match := _LIBRARY.search(name))}
    if f"cuda{cuda}" not in found:
        has = sorted(name.removeprefix("cuda") for name in found if name.startswith("cuda"))
        close = difflib.get_close_matches(cuda, has, n=1)
        raise UserError(
            f"{wheel.name}: has no library for CUDA {cuda}, but for {', '.join(has) or 'none'}"
            + (f"; did you mean {close[0]}?" if close else "")
        )
    return {name for version, name in found.items() if version != f"cuda{cuda}"}


def _without(record: str, dropped: set[str]) -> str:
    """RECORD's lines, `path,hash,size`, of the files that are still there."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerows(line for line in csv.reader(io.StringIO(record)) if line[0] not in dropped)
    return text.getvalue()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("wheel", type=Path)
@click.argument("cuda")
def main(wheel: Path, cuda: str) -> None:
    """Keep one CUDA library of a bitsandbytes wheel."""
    before = wheel.stat().st_size if wheel.is_file() else 0
    trim(wheel, cuda)
    say(f"{wheel.name}: {before / 1e6:.1f} -> {wheel.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    entry(main)
