"""Pages as a feed sent them, on disk: what is here is not asked for again.

    data/feeds/NAME/pages/ab/abcd....json.gz    an answer, by its request's name
    data/feeds/NAME/rounds/abcd...              how often a live part came to its end
    data/feeds/NAME/set-aside/abcd...           an answer that could not be read: cause, then bytes

gzip for its checksum: a page that was cut or changed is known, and asked for again. Knows nothing
of what is in a page.
"""

import gzip
import zlib
from pathlib import Path

from pressroom.console import log
from pressroom.files import publish_bytes, publish_text


class PageCache:
    """The pages of one feed. One process at a time may use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def clear_partial(self) -> None:
        """Remove what a killed process left half written."""
        for left in self.folder.rglob(".*.partial-*"):
            left.unlink()

    def _page(self, name: str) -> Path:
        return self.folder / "pages" / name[:2] / f"{name}.json.gz"

    def get(self, name: str) -> bytes | None:
        """A page's bytes, or None where it is not here, or damaged."""
        path = self._page(name)
        try:
            return gzip.decompress(path.read_bytes()) or None
        except FileNotFoundError:
            return None
        except (OSError, EOFError, zlib.error) as error:
            log.warning("%s: damaged (%s): asking for it again", path, error)
            return None

    def has(self, name: str) -> bool:
        """Whether a page is here."""
        return self._page(name).is_file()

    def put(self, name: str, body: bytes) -> None:
        """Keep a page."""
        publish_bytes(self._page(name), gzip.compress(body, mtime=0))
        self._set_aside(name).unlink(missing_ok=True)

    def _set_aside(self, name: str) -> Path:
        return self.folder / "set-aside" / name

    def set_aside(self, name: str, cause: str, body: bytes) -> Path:
        """Keep an answer that could not be read, for a person to look at."""
        path = self._set_aside(name)
        publish_bytes(path, f"{cause}\n\n".encode(errors="replace") + body)
        return path

    def round(self, name: str) -> int:
        """How often the live part that begins with this page came to its end."""
        path = self.folder / "rounds" / name
        return int(path.read_text()) if path.is_file() else 0

    def end_round(self, name: str) -> None:
        """Note that it did once more: the next fetch asks for its pages anew."""
        publish_text(self.folder / "rounds" / name, f"{self.round(name) + 1}\n")
