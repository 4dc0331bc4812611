"""Batched generation: prompts in, continuations out, as ids or as text."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from pressroom.console import Progress
from pressroom.tokenizer import ArticleTokenizer


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    eos_id: int,
    max_new_tokens: int,
    temperature: float,
    progress: Progress | None = None,
) -> list[list[int]]:
    """Continue each prompt until eos or the limit, by one token at the least.

    Args:
        model: A causal language model, or one with adapters.
        prompts: Token ids, BOS included; padded on the left here, and masked there.
        eos_id: Where a text ends.
        max_new_tokens: Where a text that does not end is cut.
        temperature: 0 takes the likeliest token each time.
        progress: Told of every token that all texts have got.

    Returns:
        The new ids of each prompt; eos is the last of them where a text ended by itself.
    """
    if not prompts:
        return []
    longest = max(map(len, prompts))
    ids = [[eos_id] * (longest - len(p)) + list(p) for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    # What the model's own generation_config.json says of these does not count.
    plain = {"repetition_penalty": 1.0, "num_beams": 1}
    if temperature:
        plain |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
    output = model.generate(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        max_new_tokens=max_new_tokens,
        min_new_tokens=1,  # a short prompt can look finished: a text that is asked for begins
        do_sample=temperature > 0,
        eos_token_id=eos_id,
        pad_token_id=eos_id,
        use_cache=True,  # training switches it off in the model's config
        streamer=_Counter(progress) if progress else None,
        **plain,
    )
    return [_cut(new, eos_id) for new in output[:, longest:].tolist()]


def write(
    model: PreTrainedModel,
    tokenizer: ArticleTokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Continue texts: `text` begins with its prompt; `ended` says whether by eos."""
    prompt_ids = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    new_ids = generate(
        model,
        prompt_ids,
        eos_id=tokenizer.eos_id,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        progress=progress,
    )
    written = []
    for before, ids in zip(prompt_ids, new_ids, strict=True):
        ended = ids[-1:] == [tokenizer.eos_id]
        # Decoded as one text: by itself, Llama's continuation would lose its first space.
        text = tokenizer.decode([*before[1:], *(ids[:-1] if ended else ids)])
        written.append({"text": text, "ended": ended, "new_tokens": len(ids)})
    return written


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


def _cut(ids: list[int], eos_id: int) -> list[int]:
    """Up to and including the first eos; what follows is padding."""
    return ids[: ids.index(eos_id) + 1] if eos_id in ids else ids
