"""Llama's geometry: how many parameters, FLOPs and bytes, from a config.json or a size's name.

Pure arithmetic: needs no weights and no torch. Knows nothing of GPUs or recipes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pressroom.console import UserError

_NONE = (False, 0, None)
_LLAMA2: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": _NONE,
    "mlp_bias": _NONE,
    "attention_dropout": _NONE,
}
"""Keys of a config -> what they are in Llama 2, where they are there."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The shape of a Llama decoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    tied_embeddings: bool = False
    max_positions: int = 4096
    """Tokens of the longest text that it was pretrained on."""
    oddities: tuple[str, ...] = ()
    """Keys of its config in which it is not as Llama 2 is: biases, dropout, another activation."""

    @classmethod
    def of(cls, model: str | Path) -> "Geometry":
        """The geometry of a size (`7b`), of a model folder or of a config.json.

        Raises:
            UserError: There is no such size or file, or it is not a Llama's config.
        """
        if str(model).lower() in SIZES:
            return SIZES[str(model).lower()]
        path = Path(model) / "config.json" if Path(model).is_dir() else Path(model)
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            sizes = ", ".join(SIZES)
            raise UserError(f"{model}: neither a size ({sizes}) nor a model folder") from None
        except ValueError as error:
            raise UserError(f"{path}: not JSON: {error}") from None
        return cls.from_config(config, str(path))

    @classmethod
    def from_config(cls, config: dict[str, Any], name: str = "config.json") -> "Geometry":
        """The geometry that a Llama's config.json describes."""
        kind = config.get("model_type") if isinstance(config, dict) else None
        if kind != "llama":
            raise UserError(f"{name}: model_type is {kind!r}: only 'llama' is supported")
        try:
            heads = config["num_attention_heads"]
            return cls(
                vocab_size=config["vocab_size"],
                hidden_size=config["hidden_size"],
                intermediate_size=config["intermediate_size"],
                num_layers=config["num_hidden_layers"],
                num_heads=heads,
                num_kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or config["hidden_size"] // heads,
                tied_embeddings=config.get("tie_word_embeddings", False),
                max_positions=config.get("max_position_embeddings") or 4096,
                oddities=tuple(k for k, v in _LLAMA2.items() if config.get(k, v[0]) not in v),
            )
        except KeyError as error:
            raise UserError(f"{name}: has no {error}") from None
        except (TypeError, ZeroDivisionError) as error:
            raise UserError(f"{name}: not a Llama's config: {error}") from None

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Name -> (out_features, in_features) of each linear layer of one decoder layer."""
        query, key_value = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (query, hidden),
            "k_proj": (key_value, hidden),
            "v_proj": (key_value, hidden),
            "o_proj": (hidden, query),
            "gate_proj": (inner, hidden),
            "up_proj": (inner, hidden),
            "down_proj": (hidden, inner),
        }

    @property
    def num_linear_weights(self) -> int:
        """Weights of all decoder linears: what is quantized."""
        return self.num_layers * sum(out * into for out, into in self.linear_shapes.values())

    @property
    def num_head_weights(self) -> int:
        """Weights of the output head, also where it is tied to the embeddings."""
        return self.vocab_size * self.hidden_size

    @property
    def num_other_weights(self) -> int:
        """Embeddings, norms, and the output head where it is not tied: never quantized."""
        embeddings = self.num_head_weights * (1 if self.tied_embeddings else 2)
        return embeddings + self.hidden_size * (2 * self.num_layers + 1)

    @property
    def num_weights(self) -> int:
        """All parameters of the base."""
        return self.num_linear_weights + self.num_other_weights

    def num_lora_weights(self, r: int) -> int:
        """Parameters of adapters of rank r on every decoder linear."""
        return self.num_layers * r * sum(out + into for out, into in self.linear_shapes.values())

    def model_flops_per_token(self, attended: float) -> float:
        """FLOPs that training adapters needs for one token: MFU's numerator.

        A frozen weight costs 2 FLOPs forward and 2 for the activation gradient, none for a
        weight gradient: 4P + 6 a d L with causal attention, P with the output head.

        Args:
            attended: Tokens that attend to each other, a: an article's length, or of a step with
                many the sum of squared lengths by the sum of lengths.
        """
        weights = self.num_linear_weights + self.num_head_weights
        width = self.num_heads * self.head_dim * self.num_layers
        return 4.0 * weights + 6.0 * attended * width


def nf4_bytes(num_weights: int, *, double_quant: bool) -> int:
    """Bytes of frozen weights stored as NF4.

    A weight takes 4 bits; each block of 64 adds one fp32 scale, or with double quantization an
    8-bit scale and one fp32 per 256 blocks: 4.5 or 4.127 bits.

    Args:
        num_weights: Weights of quantized linear layers only; embeddings, norms and the output
            head keep their own dtype.
        double_quant: Whether the first-level scales are quantized too.

    Returns:
        Bytes before sharding.

    Source: Dettmers et al., QLoRA, arXiv:2305.14314, section 3.
    """
    blocks = -(-num_weights // 64)
    scales = blocks + 4 * -(-blocks // 256) if double_quant else 4 * blocks
    return -(-num_weights // 2) + scales


def _llama2(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> Geometry:
    return Geometry(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
    )


SIZES = {
    "7b": _llama2(4096, 11008, 32, 32, 32),
    "13b": _llama2(5120, 13824, 40, 40, 40),
    "70b": _llama2(8192, 28672, 80, 64, 8),
}
"""Llama 2. Source: Touvron et al., arXiv:2307.09288, and the published config.json files."""
