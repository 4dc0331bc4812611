"""Batched generation: prompts in, continuations out, as ids or as text.

A text follows from model, prompt, seed and its key alone, whatever it is batched with: each text
draws from random numbers of its own. The likeliest token of logits with Gumbel noise on them is a
token drawn by their softmax; so noise is all that it takes, and the library's own loop, cache and
stopping stay. (torch.multinomial would draw from one source for the whole batch.)

B texts, S tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from pressroom.console import Progress
from pressroom.samples import Sampling
from pressroom.tokenizer import ArticleTokenizer


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    how: Sampling,
    *,
    eos_id: int,
    keys: Sequence[str] | None = None,
    streamer: BaseStreamer | None = None,
) -> list[list[int]]:
    """Continue each prompt until eos or the limit, by one token at the least.

    Args:
        model: A causal language model, or one with adapters.
        prompts: Token ids, BOS included; padded on the left here, and masked there.
        how: The tokens are chosen. A text also ends where the model's positions do.
        eos_id: Where a text ends.
        keys: What each text is called: its random numbers follow from that. By default its place.
        streamer: Told of the prompts and of every token.

    Returns:
        The new ids of each prompt; eos is the last of them where a text ended by itself.
    """
    if not prompts:
        return []
    longest = max(map(len, prompts))
    ids = [[eos_id] * (longest - len(p)) + list(p) for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    limits = [limit(len(prompt), how, model.config.max_position_embeddings) for prompt in prompts]
    names = [str(place) for place in range(len(prompts))] if keys is None else keys
    output = model.generate(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        max_new_tokens=max(limits),
        min_new_tokens=1,  # a short prompt can look finished: a text that is asked for begins
        do_sample=False,
        num_beams=1,  # what the model's own generation_config.json says does not count
        repetition_penalty=float(how.repetition_penalty),
        logits_processor=_drawing(how, [how.seed_of(name) for name in names], model.device),
        eos_token_id=eos_id,
        pad_token_id=eos_id,
        use_cache=True,  # training switches it off in the model's config
        streamer=streamer,
    )
    new_ids = output[:, longest:].tolist()
    return [_cut(new[:most], eos_id) for new, most in zip(new_ids, limits, strict=True)]


def limit(num_prompt_tokens: int, how: Sampling, positions: int) -> int:
    """Most new tokens of a text: as asked for, or as there are positions behind its prompt."""
    return max(1, min(how.max_new_tokens, positions - num_prompt_tokens))


def write(
    model: PreTrainedModel,
    tokenizer: ArticleTokenizer,
    prompts: Sequence[str],
    how: Sampling,
    *,
    keys: Sequence[str] | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], object] | None = None,
) -> list[dict[str, Any]]:
    """Continue texts.

    Args:
        model: A causal language model, or one with adapters.
        tokenizer: Its own.
        prompts: Are continued as they stand, behind BOS.
        how: As of `generate`, and so `keys`.
        keys: What each text is called.
        progress: Advances with every token that all texts have got.
        tell: Of a single text, given each of its pieces as it comes, those of its prompt too.

    Returns:
        Of each prompt `text`, which begins with it, and `continuation`, which does not; `ended`:
        whether by eos; `new_tokens`.
    """
    prompt_ids = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    streamer: BaseStreamer | None = _Counter(progress) if progress else None
    if tell:
        streamer = _Teller(tokenizer, tell)
    new_ids = generate(
        model, prompt_ids, how, eos_id=tokenizer.eos_id, keys=keys, streamer=streamer
    )
    written = []
    for before, ids in zip(prompt_ids, new_ids, strict=True):
        ended = ids[-1:] == [tokenizer.eos_id]
        # Decoded as one text: by itself, Llama's continuation would lose its first space.
        prompt, new = tokenizer.decode_runs([before[1:], ids[:-1] if ended else ids])
        row = {"text": prompt + new, "continuation": new, "ended": ended, "new_tokens": len(ids)}
        written.append(row)
    return written


def _drawing(how: Sampling, seeds: Sequence[int], device: torch.device) -> LogitsProcessorList:
    """What makes the likeliest token a drawn one; nothing at temperature 0."""
    if not how.temperature:
        return LogitsProcessorList()
    steps: list[LogitsProcessor] = [TemperatureLogitsWarper(float(how.temperature))]
    if how.top_p < 1:
        steps.append(TopPLogitsWarper(how.top_p))
    return LogitsProcessorList([*steps, _Noise(seeds, device)])


class _Noise(LogitsProcessor):
    """Adds Gumbel noise, minus the logarithm of what is exponentially distributed.

    Args:
        seeds: Of each text's random numbers.
        device: Where the logits are.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._sources = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise_BV = torch.empty_like(scores)
        for noise_V, source in zip(noise_BV, self._sources, strict=True):
            noise_V.exponential_(generator=source)
        # 0 would have an infinite logarithm, and choose a token that cannot come.
        return scores - noise_BV.clamp_(min=torch.finfo(noise_BV.dtype).tiny).log_()


class _Counter(BaseStreamer):
    """Counts tokens; the prompts come first."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._begun = progress, False

    def put(self, value: torch.Tensor) -> None:
        """Take the next token of each text."""
        if self._begun:
            self._progress.advance()
        self._begun = True

    def end(self) -> None:
        """Nothing is kept."""


class _Teller(BaseStreamer):
    """Tells a text as it grows; a character of several tokens when all of it is there."""

    def __init__(self, tokenizer: ArticleTokenizer, tell: Callable[[str], object]) -> None:
        self._tokenizer, self._tell = tokenizer, tell
        self._ids: list[int] = []
        self._told = 0

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, BOS first, or the next token."""
        self._ids += value.flatten().tolist()
        self._show(self._text().rstrip("\ufffd"))

    def end(self) -> None:
        """Tell what was kept back."""
        self._show(self._text())

    def _text(self) -> str:
        ended = self._ids[-1] == self._tokenizer.eos_id
        return self._tokenizer.decode(self._ids[1 : -1 if ended else None])

    def _show(self, text: str) -> None:
        if len(text) > self._told:
            self._tell(text[self._told :])
            self._told = len(text)


def _cut(ids: list[int], eos_id: int) -> list[int]:
    """Up to and including the first eos; what follows is padding."""
    return ids[: ids.index(eos_id) + 1] if eos_id in ids else ids
