"""One decoder layer's activations, tensor by tensor, as a GPU keeps them.

In formulas d is the hidden size, q and k the widths of queries and of keys, f the MLP's, h the
heads, t the tokens of the micro-batch, e the bytes of an element. Knows nothing of GPUs, strategies
or weights.
"""

from dataclasses import dataclass
from typing import Literal

from pressroom.geometry import Geometry
from pressroom.planner.weights import DTYPE_BYTES, adapter_weights
from pressroom.train_sections import DTYPES, Lora, Memory, Save

Attention = Literal["sdpa", "eager", "flash"]
"""sdpa with the dense mask of packed rows, as trained; flash is told where articles begin."""

_SAME_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)


@dataclass(frozen=True)
class DecoderLayer:
    """Bytes of a layer, for all tokens, but where a property says that they are a token's.

    Args:
        geometry: The decoder.
        lora: Rank, dropout and targets of the adapters.
        memory: What is computed again, and the precision.
        tokens: Of the micro-batch.
        attention: Its implementation.
        quantized: Whether the base is.
        save: What a lean layer keeps, or `plain`.
    """

    geometry: Geometry
    lora: Lora
    memory: Memory
    tokens: int
    attention: Attention
    quantized: bool
    save: Save = "plain"

    @property
    def element(self) -> int:
        """Bytes of an element of what is computed."""
        return DTYPE_BYTES[DTYPES[self.memory.precision]]

    @property
    def is_cast(self) -> bool:
        """Whether what is kept in fp32 is cast to be computed with."""
        return self.element < 4

    @property
    def casts_inputs(self) -> bool:
        """Whether each adapter casts its input, to fp32 and back, as peft's on plain linears do."""
        return self.is_cast and not self.quantized

    @property
    def has_own_inputs(self) -> bool:
        """Whether each adapter keeps an input of its own, dropped or cast."""
        return self.casts_inputs or self.lora.dropout > 0

    @property
    def queries(self) -> int:
        """Their width."""
        return self.geometry.num_heads * self.geometry.head_dim

    @property
    def targets(self) -> set[str]:
        """Names of the linears with an adapter."""
        names = self.lora.target_modules
        return set(self.geometry.linear_shapes if names == "all-linear" else names)

    @property
    def input(self) -> int:
        """What enters the layer: e d a token."""
        return self.tokens * self.element * self.geometry.hidden_size

    @property
    def kept(self) -> int:
        """Between forward and backward pass.

        With `full`, the layer's input. With `selective`, that, the outputs of the base's linears,
        e (q + 2 k + 2 d + 2 f) a token, attention's output and logsumexp unless it is eager,
        e q + 4 h, and e r of each adapter.
        """
        if self.memory.activation_checkpointing == "none":
            return self.whole
        if self.memory.activation_checkpointing == "full":
            return self.input
        token = (
            self.element * sum(out for out, _ in self.geometry.linear_shapes.values()),
            self.element * self.lora.r * len(self.targets),
            self.element * self.queries if self.attention != "eager" else 0,
            4 * self.geometry.num_heads if self.attention != "eager" else 0,
        )
        return self.input + self.tokens * sum(token)

    @property
    def whole(self) -> int:
        """What is kept when no checkpoint computes anything again: by a lean layer, `lean`.

        In a plain one a token leaves the two norms' inputs in fp32 with their scales, 8 d + 8; what
        `attended` says; gate, its activation and up, 3 e f; the adapters' inputs, and what is
        inside of each, e r. Besides there are the adapters, cast unless computing is in fp32.
        """
        if self.save != "plain":
            return self.tokens * self.lean
        token = (
            8 * self.geometry.hidden_size + 8,
            self.attended,
            3 * self.element * self.geometry.intermediate_size,
            self.adapter_inputs,
            self.element * self.lora.r * len(self.targets),
        )
        adapters = adapter_weights(self.geometry, self.lora) // self.geometry.num_layers
        return self.tokens * sum(token) + self.is_cast * self.element * adapters

    @property
    def lean(self) -> int:
        """What a token leaves in a lean layer, `train/fast_layer.py`.

        Its input, e d; both norms' scales, 8; queries, keys, values, attention's output and
        logsumexp; e r of each adapter. `less` keeps the first residual sum besides, e d; `all` gate
        and up too, 2 e f.
        """
        hidden, inner = self.geometry.hidden_size, self.geometry.intermediate_size
        wide = {"least": 0, "less": hidden, "all": hidden + 2 * inner}[self.save]
        inside = self.lora.r * len(self.targets)
        return self.element * (hidden + wide + inside) + 8 + self.attended

    @property
    def attended(self) -> int:
        """A token's queries, keys, values, and what attention adds.

        - flash: output and logsumexp: 2 e q + 2 e k + 4 h;
        - sdpa: the same with keys and values repeated for each query head, and the mask, which
          every layer turns into floats of its own: 4 e q + 4 h + e t;
        - eager: probabilities in fp32, and cast: 3 e q + (4 + e) h t.
        """
        element, heads, tokens = self.element, self.geometry.num_heads, self.tokens
        if self.attention == "flash":
            keys = self.geometry.num_kv_heads * self.geometry.head_dim
            return 2 * element * (self.queries + keys) + 4 * heads
        if self.attention == "sdpa":
            return 4 * element * self.queries + 4 * heads + element * tokens
        return 3 * element * self.queries + (4 + self.is_cast * element) * heads * tokens

    @property
    def adapter_inputs(self) -> int:
        """A token's inputs of all adapters.

        Those of one tensor share it, and o_proj's is attention's output, which only eager attention
        does not keep.
        """
        if self.has_own_inputs:
            return sum(self.adapter_input(name) for name in self.targets)
        kept = {"o_proj"} if self.attention != "eager" else set()
        groups = [group for group in _SAME_INPUT if self.targets & set(group) - kept]
        return sum(self.adapter_input(group[0]) for group in groups)

    def adapter_input(self, name: str) -> int:
        """A token's input of one adapter, and a byte of dropout's mask for each of its elements."""
        return (self.element + (self.lora.dropout > 0)) * self.geometry.linear_shapes[name][1]
