"""The nodes of a job meet before they start anything: who is there, and what is to be done.

The first node listens; the others say who they are, wait for its orders, and answer what is wrong
with them on their side. A file would do as well if a shared file system were not slow to show one;
and a connection breaks when the other side dies, so that nobody waits for the dead. Knows nothing
of what the orders mean.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pressroom.console import UserError, log

UP_SECONDS = 300.0
"""In which every node has to come; modules and containers take their time on some."""
BEAT_SECONDS = 5.0
"""Between two signs of life of the first node, while the others wait."""
SILENCE_SECONDS = 60.0
"""Without a word, after which the other side is taken for dead."""

Message = dict[str, Any]


class Meeting:
    """The first node's side."""

    def __init__(self, server: socket.socket, hosts: Sequence[str], job: str) -> None:
        self._server, self._hosts, self._job = server, hosts, job
        self._there: dict[int, tuple[socket.socket, Message]] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        for work in (self._welcome, self._beat):
            threading.Thread(target=work, daemon=True).start()

    def _welcome(self) -> None:
        while not self._over.is_set():
            with suppress(OSError, ValueError):
                connection, _ = self._server.accept()
                connection.settimeout(BEAT_SECONDS)  # a stranger may say nothing at all
                hello = _receive(connection)
                rank: Any = hello.get("node_rank")
                if hello.get("job") != self._job or rank not in range(1, len(self._hosts)):
                    connection.close()
                    continue
                connection.settimeout(SILENCE_SECONDS)
                with self._lock:
                    self._there[rank] = (connection, hello)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            self._tell({})

    def _tell(self, message: Message) -> None:
        with self._lock:
            for connection, _ in self._there.values():
                with suppress(OSError):
                    _send(connection, message)

    def everybody(self, deadline_seconds: float = UP_SECONDS) -> list[Message]:
        """What the other nodes say of themselves, in the order of their ranks.

        Raises:
            UserError: Nodes have not come; they are named.
        """
        expected = set(range(1, len(self._hosts)))
        deadline = time.monotonic() + deadline_seconds
        while missing := sorted(expected - self._there.keys()):
            if time.monotonic() > deadline:
                names = ", ".join(self._hosts[rank] for rank in missing)
                raise UserError(
                    f"{names}: not heard of for {deadline_seconds:.0f} s; see that node's log, "
                    f"or leave it out: --exclude={names.replace(' ', '')}"
                )
            time.sleep(0.05)
        return [self._there[rank][1] for rank in sorted(expected)]

    def agree(self, orders: Message) -> None:
        """Give orders to everybody who has come, and go on when all can follow them.

        Raises:
            UserError: A node cannot; each says why.
        """
        self._tell({"orders": orders})
        problems = []
        for rank, (connection, _) in sorted(self._there.items()):
            try:
                answer = _receive(connection)
                problems += [f"{self._hosts[rank]}: {text}" for text in answer["problems"]]
            except (OSError, ValueError, KeyError) as error:
                problems.append(f"{self._hosts[rank]}: has gone ({error})")
        self._tell({"go": not problems})
        if problems:
            raise UserError("\n".join(problems))

    def _end(self) -> None:
        self._over.set()
        with self._lock:
            for connection, _ in self._there.values():
                connection.close()


@contextmanager
def meeting(port: int, hosts: Sequence[str], job: str) -> Iterator[Meeting]:
    """Meet the other nodes; to leave the block by an error tells them to stop.

    Args:
        port: Where to listen.
        hosts: All nodes, this one first.
        job: Theirs; another's nodes are sent away.

    Raises:
        UserError: The port is taken.
    """
    try:
        server = socket.create_server(("", port), backlog=len(hosts))
    except OSError as error:
        raise UserError(f"{hosts[0]}: port {port} is taken by another program: {error}") from None
    server.settimeout(1.0)
    with server:
        found = Meeting(server, hosts, job)
        try:
            yield found
        finally:
            found._end()


def follow(
    address: str, port: int, hello: Message, check: Callable[[Message], list[str]]
) -> Message:
    """The other nodes' side: come, wait for orders, say what is wrong with them here.

    Args:
        address: The first node.
        port: Where it listens.
        hello: What this node says of itself, its `job` and `node_rank` among it.
        check: Orders -> what is wrong with them on this node.

    Returns:
        The orders, which all nodes can follow.

    Raises:
        UserError: The first node is not there, or has stopped.
    """
    try:
        with _connect(address, port) as connection:
            connection.settimeout(SILENCE_SECONDS)
            _send(connection, hello)
            orders: Message = _receive(connection)["orders"]
            problems = check(orders)
            _send(connection, {"problems": problems})
            if _receive(connection)["go"]:
                return orders
    except (OSError, ValueError, KeyError) as error:
        log.info("%s has stopped (%s)", address, error)
    raise UserError(f"not started: {address}, the first node, says why")


def _connect(address: str, port: int) -> socket.socket:
    deadline = time.monotonic() + UP_SECONDS
    while True:
        try:
            return socket.create_connection((address, port), timeout=10)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _send(connection: socket.socket, message: Message) -> None:
    connection.sendall((json.dumps(message) + "\n").encode())


def _receive(connection: socket.socket) -> Message:
    """The next message that says something.

    Raises:
        OSError: The other side has gone, or is silent.
        ValueError: It is no message.
    """
    while True:
        line = b""
        while not line.endswith(b"\n"):  # byte by byte: what follows is the next reader's
            byte = connection.recv(1)
            if not byte:
                raise ConnectionError("the connection was closed")
            line += byte
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("not a message")
        if message:
            return message
