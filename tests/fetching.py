"""Fetches as tests make them: the command against a server, and what is true of each of them."""

import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote, quote_plus

from mediastack_server import KEY, Server

from data_prep.page_cache import PageCache
from pressroom import cli

FEED = Path("data", "feeds", "mediastack")


@dataclass
class Outcome:
    """What a fetch said."""

    code: int
    out: str
    err: str

    def count(self, name: str) -> int:
        """A figure of the summary."""
        found = re.search(rf"^{name} +([\d,]+)", self.out, re.MULTILINE)
        assert found, self.out + self.err
        return int(found[1].replace(",", ""))


def arguments_of(server: Server, arguments: tuple[str, ...]) -> list[str]:
    """`fetch mediastack` against a server, without pauses."""
    http = ["--allow-http"] if server.url.startswith("http:") else []
    return ["fetch", "mediastack", *http, "--base-url", server.url, "--pause", "0", *arguments]


def environment_of(home: Path, **more: str) -> dict[str, str]:
    """Of a command that fetches into a folder."""
    return {**os.environ, "PRESSROOM_HOME": str(home), "MEDIASTACK_ACCESS_KEY": KEY, **more}


def fetch(server: Server, home: Path, *arguments: str, **environment: str) -> Outcome:
    """Fetch in this process, see that all is accounted for, and the key is nowhere."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    root = logging.getLogger()
    before = root.handlers[:], root.level
    with (
        mock.patch.dict(os.environ, environment_of(home, **environment)),
        mock.patch("os.fsync"),  # seconds on a busy disk, for a power cut that no test makes
        mock.patch.object(sys, "argv", ["pressroom", *arguments_of(server, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.entry()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            root.handlers[:], root.level = before
    outcome = Outcome(code, out.getvalue(), err.getvalue())
    check(outcome, home)
    return outcome


def start(server: Server, home: Path, *arguments: str) -> subprocess.Popen:
    """Fetch in a process of its own, that can be killed."""
    code = "from pressroom.cli import entry; entry()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments_of(server, arguments)],
        env=environment_of(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check(outcome: Outcome, home: Path) -> None:
    """Received = new + duplicates + rejects, no traceback, and no key."""
    assert "Traceback" not in outcome.err, outcome.err
    if "articles " in outcome.out:
        kept = [outcome.count(name) for name in ("new", "duplicates", "rejects")]
        assert outcome.count("articles") == sum(kept)
    assert_no_key(home, outcome.out + outcome.err)


def assert_no_key(home: Path, output: str) -> None:
    """The key stands in no file's bytes or name, packed or not, and in no output, in no form."""
    forms = [KEY, quote(KEY, safe=""), quote_plus(KEY), quote(KEY), json.dumps(KEY)[1:-1]]
    forms += [KEY.replace("/", r"\/"), quote(KEY, safe="").lower()]
    texts = [output.encode()]
    for path in home.rglob("*"):
        texts.append(str(path.relative_to(home)).encode())
        if path.is_file():
            texts.append(path.read_bytes())
        if path.name.endswith(".json.gz"):
            texts.append(PageCache(home / FEED).get(path.name[: -len(".json.gz")]) or b"")
    for form in forms:
        assert not any(form.encode() in text for text in texts), form


def articles_of(home: Path) -> list[dict[str, Any]]:
    """The lines of the store."""
    path = home / "data" / "articles" / "mediastack.jsonl"
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def urls_of(home: Path) -> list[str]:
    """Their URLs, in order."""
    return [line["url"] for line in articles_of(home)]


def rejects_of(home: Path) -> list[dict[str, Any]]:
    """What stands among the rejects."""
    path = home / "data" / "articles" / "mediastack.rejects"
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def spent(home: Path) -> int:
    """Requests that were counted."""
    return sum(
        len(path.read_text().splitlines()) for path in (home / FEED / "requests").glob("*.txt")
    )
