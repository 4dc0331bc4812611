"""The roll call of a job's ranks: who has come, what each says, and one message when all must end.

Ranks speak through their launcher's store, a TCP server that each reaches before it reaches its
peers: so what keeps them apart can still be told. Knows nothing of what they say.
"""

import json
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn

from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined]

from pressroom.console import UserError, last_words, log
from train import rank_log

HOSTS = "PRESSROOM_HOSTS"
"""Environment: the names of all nodes with commas between, in the order of their ranks."""
SECONDS = 120.0
"""For all ranks to come, and to connect: a slow disk takes a minute to import the libraries."""
FAREWELL_SECONDS = 5.0
"""For the rank that says why all end, before others end: a launcher then ends all at once."""
POLL_SECONDS = 0.05

Problem = tuple[int, str]
"""A rank, and what is wrong there."""


class RollCall:
    """The ranks of a job, many or one, and where each stands."""

    def __init__(
        self, rank: int = 0, world_size: int = 1, per_node: int = 1, store: Any = None
    ) -> None:
        """Where the ranks of a node follow each other.

        Args:
            rank: This one.
            world_size: All of them.
            per_node: Of each node.
            store: Through which they speak; None for one rank alone.
        """
        self.rank, self.world_size, self._per_node, self._store = rank, world_size, per_node, store
        named, nodes = os.environ.get(HOSTS, "").split(","), math.ceil(world_size / per_node)
        self._named = len(named) == nodes and all(named)
        self._hosts = named if self._named else [f"node {n}" for n in range(nodes)]

    @classmethod
    def of_launcher(cls) -> "RollCall":
        """The ranks that the launcher's variables tell of.

        Raises:
            UserError: The store does not answer.
        """
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1:
            return cls()
        rank, per_node = int(os.environ["RANK"]), os.environ.get("LOCAL_WORLD_SIZE", world_size)
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # As torch does it: the launcher's agent has the store, or else rank 0; torch's own client
        # joins the one that is there.
        serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        bound = timedelta(seconds=SECONDS)
        try:
            store = TCPStore(
                address, port, None, serves, bound, wait_for_workers=False, multi_tenant=True
            )
        except DistError:
            raise UserError(
                f"{rank_log.host_name()} (rank {rank}): does not reach the job's first node, "
                f"{address} port {port}, within {SECONDS:.0f} s"
            ) from None
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(rank, world_size, int(per_node), PrefixStore(f"pressroom/{attempt}", store))

    def meet(self, wrong: str = "") -> None:
        """Wait until every rank has come.

        Args:
            wrong: What this rank knows to be wrong with it.

        Raises:
            UserError: A rank is missing, or something is wrong with one.
        """
        here = self.told("here", [rank_log.host_name(), wrong], SECONDS)
        problems = []
        for rank, said in enumerate(here):
            if said is None:
                local = rank % self._per_node
                problems.append((rank, f"local rank {local} did not come within {SECONDS:.0f} s"))
                continue
            if not self._named:
                self._hosts[rank // self._per_node] = said[0]
            if said[1]:
                problems.append((rank, said[1]))
        if problems:
            self.end(problems, here)

    def told(self, what: str, mine: Any, seconds: float) -> list[Any]:
        """What every rank says, by rank; None of one that has not said it in time.

        Args:
            what: Its name; a rank says a thing once.
            mine: What this rank says: a JSON value, and not None.
            seconds: To wait for others.

        Raises:
            UserError: The rank that has the store has ended.
        """
        if self._store is None:
            return [mine]
        keys = [f"{what}/{rank}" for rank in range(self.world_size)]
        try:
            self._store.set(keys[self.rank], json.dumps(mine))
            self._wait(keys, seconds)
            there = [key for key in keys if self._store.check([key])]
            said = dict(zip(there, self._store.multi_get(there), strict=True))
            return [json.loads(said[key]) if key in said else None for key in keys]
        except DistError:
            raise UserError("the first rank has ended; its own words say why") from None

    def _wait(self, keys: list[str], seconds: float) -> None:
        if self._store is None:
            return
        deadline = time.monotonic() + seconds
        # The store's own wait writes a page to the log when it gives up.
        while not self._store.check(keys) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    @contextmanager
    def connecting(self) -> Iterator[None]:
        """End this rank when the block, in which ranks connect to each other, hangs.

        Libraries would wait for half an hour, and name nobody.
        """
        if self._store is None:
            yield
            return
        timer = threading.Timer(SECONDS, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
            self._store.set(f"connected/{self.rank}", "")
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        what = (
            f"was not connected to all others within {SECONDS:.0f} s; GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME name the network interface"
        )
        try:
            ranks = range(self.world_size)
            apart = [r for r in ranks if not self._store.check([f"connected/{r}"])]
            told = self.message((rank, what) for rank in apart)
            if self.rank == min(apart):
                last_words(f"error: {told}")
            else:
                self._let_speak(told)
        finally:
            os._exit(2)

    def end(self, problems: Iterable[Problem], here: Sequence[object]) -> NoReturn:
        """End this rank; every rank that is there calls it.

        Args:
            problems: Why.
            here: By rank, what it said last; None of those that are not there.

        Raises:
            UserError: In the first rank.
            SystemExit: In the others.
        """
        there = [rank for rank, said in enumerate(here) if said is not None]
        told = self.message(problems)
        with suppress(DistError):
            if self._store is not None:
                self._store.set(f"read/{self.rank}", "")
            if self.rank == min(there):  # it may have the store, which others still read
                self._wait([f"read/{rank}" for rank in there], FAREWELL_SECONDS)
        if self.rank == min(there):
            raise UserError(told)
        self._let_speak(told)
        raise SystemExit(2)

    def _let_speak(self, told: str) -> None:
        """Wait until the first rank has spoken; a rank with a file of its own notes it there."""
        if rank_log.FOLDER in os.environ:
            log.error("%s", told)
        time.sleep(2 * FAREWELL_SECONDS)

    def message(self, problems: Iterable[Problem]) -> str:
        """Problems as lines, `host (rank r): what`; ranks of a node with the same one share it."""
        if self._store is None:
            return "pre-flight: " + "; ".join(what for _, what in problems)
        same: dict[tuple[str, str], list[int]] = {}
        for rank, what in problems:
            same.setdefault((self._hosts[rank // self._per_node], what), []).append(rank)
        lines = [
            f"  {host} (rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}): {what}"
            for (host, what), ranks in same.items()
        ]
        return "pre-flight:\n" + "\n".join(lines)
