"""A hub on this machine, as `huggingface_hub` sees the real one over plain HTTP.

It lists repositories, resolves files with ETag and commit, sends large ones to a second host that
must not see the token, answers ranges, and refuses as the real one does: gated, absent, a wrong
token. It can break a file off in mid-transfer. Each request is remembered.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "x" * 20
_LARGE = (".safetensors", ".parquet", ".arrow", ".bin")
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/?]+))?$")
_RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


@dataclass
class Request:
    """What a client asked."""

    method: str
    path: str
    token: str | None
    range: str | None

    @property
    def is_transfer(self) -> bool:
        """Whether it asked for a file's bytes."""
        return self.method == "GET" and ("/resolve/" in self.path or "/cdn/" in self.path)


@dataclass
class Repo:
    """A repository with one commit on its branch `main`."""

    files: dict[str, bytes] = field(repr=False)
    gated: bool = False

    @property
    def commit(self) -> str:
        """40 hex digits of its content."""
        content = [(name, hashlib.sha1(file).hexdigest()) for name, file in self.files.items()]
        return hashlib.sha1(repr(sorted(content)).encode()).hexdigest()


@dataclass
class Hub:
    """The server's state, changed by tests as it runs."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    """`models/ORG/NAME` or `datasets/ORG/NAME` -> repository."""
    requests: list[Request] = field(default_factory=list)
    break_after: int | None = None
    """The next large file is cut after so many bytes, once."""

    def run(self, cache: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Run `pressroom` with this hub, a cache of its own, and no other network."""
        self.requests.clear()
        code = "from pressroom.cli import entry; entry()"
        settings = {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
        kept = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_HUB_CACHE")}
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**kept, **settings, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.hub.requests.append(Request(self.command, path, token, self.headers.get("Range")))
        if path.startswith("/cdn/"):
            self._transfer(self._blob(path.rpartition("/")[2]))
        elif token not in (None, TOKEN):
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif api := _API.match(path):
            self._describe(f"{api[1]}/{api[2]}", api[3], api[4] or "main", token)
        elif file := _RESOLVE.match(path):
            self._resolve(f"{'datasets' if file[1] else 'models'}/{file[2]}", *file.group(3, 4))
        else:
            self._refuse(404, None, f"no such route {path}")

    def _find(self, name: str, revision: str, token: str | None) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None:
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif revision not in ("main", repo.commit):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repo
        return None

    def _describe(self, name: str, what: str | None, revision: str, token: str | None) -> None:
        repo = self._find(name, revision, token)
        if repo is None:
            return
        if what == "tree":
            self._json([self._entry(*item) for item in sorted(repo.files.items())])
            return
        siblings = [{"rfilename": file} for file in sorted(repo.files)]
        gated = "manual" if repo.gated else False
        facts = {"private": False, "disabled": False, "gated": gated, "siblings": siblings}
        self._json({"id": name.partition("/")[2], "sha": repo.commit, **facts})

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(content).hexdigest()
        entry: dict[str, Any] = {"type": "file", "oid": oid, "size": len(content), "path": path}
        if path.endswith(_LARGE):
            sha = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 134}
        return entry

    def _resolve(self, name: str, revision: str, file: str) -> None:
        token = self.hub.requests[-1].token
        repo = self._find(name, revision, token)
        if repo is None:
            return
        if repo.gated:
            self._refuse(403 if token else 401, "GatedRepo", "Access to it is restricted.")
        elif file not in repo.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        elif file.endswith(_LARGE):
            content = repo.files[file]
            sha = hashlib.sha256(content).hexdigest()
            self.send_response(302)
            # Another host name: a client that keeps its token to itself sends it none.
            port = self.server.server_address[1]
            self.send_header("Location", f"http://localhost:{port}/cdn/{sha}")
            self.send_header("X-Repo-Commit", repo.commit)
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("X-Linked-ETag", f'"{sha}"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._transfer(repo.files[file], repo.commit)

    def _blob(self, sha: str) -> bytes:
        blobs = (blob for repo in self.hub.repos.values() for blob in repo.files.values())
        return next(blob for blob in blobs if hashlib.sha256(blob).hexdigest() == sha)

    def _transfer(self, content: bytes, commit: str | None = None) -> None:
        span = re.match(r"bytes=(\d+)-$", self.headers.get("Range", ""))
        start = int(span[1]) if span else 0
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        stop, is_large = self.hub.break_after, commit is None
        if stop is not None and is_large:
            self.hub.break_after = None
            self.wfile.write(content[start : start + stop])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
        else:
            self.wfile.write(content[start:])

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers for as long as the block runs."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
