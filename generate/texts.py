"""Many texts: in batches of similar lengths, by one model or by one on each GPU.

Knows nothing of files.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import Any

import torch

from generate.asked import Asked
from generate.origin import Origin
from generate.tuned import device
from generate.voice import Voice
from pressroom.console import UserError, log
from pressroom.nn import sampling
from pressroom.samples import Sampling

Written = list[tuple[Asked, dict[str, Any]]]
"""Texts as of `sampling.write`, beside what was asked."""
_FULL = 0.9
"""Of a GPU's memory that weights may take; the rest is for keys and values."""


def require_room(voice: Voice, asked: Sequence[Asked], how: Sampling) -> dict[str, int]:
    """Tokens of each prompt, by key.

    Raises:
        UserError: Naming every prompt that leaves no position for a new token.
    """
    lengths = {one.key: len(voice.tokenizer.encode_prompt(one.prompt)) for one in asked}
    long = [one for one in asked if lengths[one.key] >= voice.positions]
    if long:
        raise UserError(
            "\n".join(
                f"{one.where}: {lengths[one.key]:,} tokens, and the model has {voice.positions:,} "
                "positions for prompt and text: shorten it"
                for one in long
            )
        )
    cut = sum(n + how.max_new_tokens > voice.positions for n in lengths.values())
    if cut:
        log.info(
            "%d of %d texts end where the model's %d positions do, before --max-new-tokens",
            *(cut, len(asked), voice.positions),
        )
    return lengths


def batches(asked: Sequence[Asked], lengths: dict[str, int], size: int) -> list[list[Asked]]:
    """Cut into batches by length, longest first: what does not fit is seen at once."""
    order = sorted(asked, key=lambda one: (-lengths[one.key], one.key))
    return [order[start : start + size] for start in range(0, len(order), size)]


def places(voice: Voice, processes: int | None) -> list[torch.device | None]:
    """Where a model is loaded, a process each; None: one, divided among all GPUs.

    Args:
        voice: Whose model it is.
        processes: How many; None: one on each GPU, if the model fits one.
    """
    count = torch.cuda.device_count()
    if count == 0:
        return [device()] * (processes or 1)
    if count > 1:
        memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(count))
        if voice.weight_bytes > _FULL * memory:
            log.info("the model does not fit a GPU: its layers are divided among %d", count)
            return [None]
    return [torch.device("cuda", i % count) for i in range(processes or count)]


def write_all(
    voice: Voice, todo: list[list[Asked]], how: Sampling, where: list[torch.device | None]
) -> Iterator[Written]:
    """Write batches, by a process for each place; by this one where there is one place.

    Yields:
        Each batch when it is written.

    Raises:
        UserError: The model cannot be read, or a process was killed.
    """
    if len(where) == 1 or len(todo) == 1:
        model = voice.load(where[0])
        for batch in todo:
            yield _write(voice, model, batch, how)
        return
    context = multiprocessing.get_context("spawn")
    free = context.SimpleQueue()
    for place in where:
        free.put(place)
    with ProcessPoolExecutor(len(where), context, _begin, (free,)) as pool:
        waiting: list[Future[Written]] = [
            pool.submit(_write_here, voice.origin, batch, how) for batch in todo
        ]
        try:
            for done in as_completed(waiting):
                yield done.result()
        except BrokenProcessPool:
            raise UserError(
                "a process was killed, most likely for want of memory: fewer --processes, or a "
                "smaller --batch-size"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _write(voice: Voice, model: Any, batch: list[Asked], how: Sampling) -> Written:
    prompts, keys = [one.prompt for one in batch], [one.key for one in batch]
    return list(
        zip(batch, sampling.write(model, voice.tokenizer, prompts, how, keys=keys), strict=True)
    )


_place: list[torch.device | None] = []
"""Of this process, where it is one of several."""


def _begin(free: Any) -> None:
    """Take a place, and end with the process that started this one, or by Ctrl-C, in silence."""
    _place.append(free.get())
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent

    def end_with_it() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()


@cache
def _model(origin: Origin) -> tuple[Voice, Any]:
    voice = Voice(origin)
    return voice, voice.load(_place[0])


def _write_here(origin: Origin, batch: list[Asked], how: Sampling) -> Written:
    voice, model = _model(origin)
    return _write(voice, model, batch, how)
