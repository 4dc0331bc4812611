"""Held-out losses from the likelihoods of tokens, in all and by group. Knows nothing of models.

A loss is the mean over tokens, whatever article they are of; its error is over articles, for the
tokens of one are alike.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from generate.held_out import HeldOut
from pressroom.dataset import IGNORE

NOT_SAID = "(not said)"
OTHERS = "(all others)"
MOST_GROUPS = 12


@dataclass(frozen=True)
class Total:
    """NLL over some tokens, in nats."""

    nll: float
    tokens: int

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nll / max(self.tokens, 1)


def totals(
    articles: Sequence[HeldOut], nll: Sequence[torch.Tensor], eos_id: int
) -> dict[str, list[Total]]:
    """Of each article, or piece of one, its trained tokens, and those of its description less eos.

    Args:
        articles: Their tokens.
        nll: Of each its tokens' likelihoods, [S].
        eos_id: Learnt soon, and so not the description's.
    """
    found: dict[str, list[Total]] = {"trained": [], "description": []}
    for article, nll_S in zip(articles, nll, strict=True):
        counted = torch.tensor(article.labels) != IGNORE
        counted[0] = False
        description = counted.clone()
        description[: article.prompt_length] = False
        description[-1] &= article.ids[-1] != eos_id
        for name, mask in (("trained", counted), ("description", description)):
            found[name].append(Total(float(nll_S[mask].double().sum()), int(mask.sum())))
    return found


def loss(of: Sequence[Total]) -> float:
    """Nats a token."""
    return Total(math.fsum(one.nll for one in of), sum(one.tokens for one in of)).loss


def by_group(
    names: Sequence[str], ids: Sequence[str], base: Sequence[Total], tuned: Sequence[Total]
) -> list[dict[str, Any]]:
    """Losses of groups of articles, base beside tuned; the groups with most tokens first.

    Args:
        names: Of each piece the group that its article is of; empty where that is not said.
        ids: Of each piece its article.
        base: Likelihoods of its tokens.
        tuned: The same by the tuned model.

    Returns:
        Of each group `name`, `articles`, `tokens`, `base`, `tuned`, `change` and its `error`: one
        standard error over articles, null for a single one. Empty where nothing is said of any.
    """
    groups: dict[str, dict[str, list[tuple[Total, Total]]]] = defaultdict(lambda: defaultdict(list))
    for name, article, *both in zip(names, ids, base, tuned, strict=True):
        groups[name or NOT_SAID][article].append((both[0], both[1]))
    if set(groups) == {NOT_SAID}:
        return []
    order = sorted(groups, key=lambda name: (-_tokens(groups[name]), name))
    kept, rest = order[:MOST_GROUPS], order[MOST_GROUPS:]
    if len(rest) == 1:
        kept, rest = order, []
    rows = [_group(name, groups[name]) for name in kept]
    if rest:
        others = {article: found for name in rest for article, found in groups[name].items()}
        rows.append(_group(f"{OTHERS[:-1]}, {len(rest)})", others))
    return rows


_Articles = Mapping[str, list[tuple[Total, Total]]]


def _tokens(articles: _Articles) -> int:
    return sum(base.tokens for pieces in articles.values() for base, _ in pieces)


def _group(name: str, articles: _Articles) -> dict[str, Any]:
    pieces = [both for several in articles.values() for both in several]
    base, tuned = (loss([both[side] for both in pieces]) for side in (0, 1))
    change, tokens, count = tuned - base, _tokens(articles), len(articles)
    # Of a mean weighted by tokens: Cochran, Sampling Techniques, 3rd ed., section 6.3.
    apart = [
        math.fsum(after.nll - before.nll - change * before.tokens for before, after in several)
        for several in articles.values()
    ]
    spread = math.fsum(one**2 for one in apart) * count / max(count - 1, 1)
    return {
        "name": name,
        "articles": count,
        "tokens": tokens,
        "base": base,
        "tuned": tuned,
        "change": change,
        "error": math.sqrt(spread) / max(tokens, 1) if count > 1 else None,
    }
