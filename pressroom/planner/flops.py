"""FLOPs that a training micro-step executes, product by product.

Held against `torch.utils.flop_counter` in tests. A multiplication and an addition are two FLOPs.
Knows nothing of GPUs.
"""

from dataclasses import dataclass

from pressroom.geometry import Geometry
from pressroom.train_sections import Checkpointing, Lora, Memory, Save

_STAGE = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "gate_proj": 2, "up_proj": 2}
_STAGE["down_proj"] = 3
"""Where a linear stands in its layer, in the order of the forward pass."""
REMADE: dict[Save, tuple[str, ...]] = {
    "plain": (),
    "all": (),
    "less": ("gate_proj", "up_proj"),
    "least": ("gate_proj", "up_proj", "o_proj"),
}
"""Linears whose outputs a lean layer computes again, by what it keeps."""


def hardware_flops_per_token(
    geometry: Geometry, attended: float, checkpointing: Checkpointing
) -> float:
    """FLOPs that training adapters executes for one token by convention: HFU's numerator.

    4P + 7adL: attention's backward pass computes its scores again. With `full` checkpointing
    6P + 9adL. Adapters and what a kernel visits under a mask are not counted, as in
    `Geometry.model_flops_per_token`, MFU's 4P + 6adL.

    Args:
        geometry: The decoder; P are its linears and its head.
        attended: Tokens that attend to each other, a.
        checkpointing: What is computed again; `selective` keeps all products.
    """
    products, scores = (6.0, 9.0) if checkpointing == "full" else (4.0, 7.0)
    weights = geometry.num_linear_weights + geometry.num_head_weights
    heads = geometry.num_heads * geometry.head_dim * geometry.num_layers
    return products * weights + scores * attended * heads


@dataclass(frozen=True, kw_only=True)
class Flops:
    """What one micro-step executes, forward, backward and what is computed again."""

    linears: float
    """Frozen linears of the decoder layers."""
    adapters: float
    attention: float
    """Scores and values, over all pairs of tokens that the kernel visits."""
    head: float
    """Output head and loss."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.linears + self.adapters + self.attention + self.head


def executed(
    geometry: Geometry,
    lora: Lora,
    memory: Memory,
    tokens: int,
    attended: float,
    save: Save = "plain",
) -> Flops:
    """FLOPs of one micro-step.

    A frozen linear costs 2 a weight and token forward and 2 for the gradient of its input; an
    adapter's two products cost 2 forward and 4 backward, for they have weight gradients too.
    Attention is two products of `attended` tokens forward and five backward, which computes the
    scores again. The head is frozen, so it costs 2 and 2. `full` computes layers again,
    `selective` the adapters' second products alone, a lean layer the products of `REMADE`.

    Args:
        geometry: The decoder.
        lora: Which linears have adapters.
        memory: What is computed again.
        tokens: Of the micro-batch.
        attended: Keys that each query visits: the micro-batch's tokens under a dense mask, half
            an article's length under causal kernels that skip.
        save: What lean layers keep.
    """
    shapes, layers = geometry.linear_shapes, geometry.num_layers
    targets = shapes if isinstance(lora.target_modules, str) else lora.target_modules
    starts = min(_STAGE[name] for name in targets)
    weights = sum(out * into for out, into in shapes.values())
    thin = lora.r * sum(sum(shapes[name]) for name in targets)
    mode = memory.activation_checkpointing
    again = mode == "full"
    # Before the first layer's first adapter nothing has a gradient, for the embeddings are frozen;
    # but `full` asks for one of what goes into each layer.
    first = [name for name in shapes if _STAGE[name] <= starts and not again]
    spared = sum(shapes[name][0] * shapes[name][1] for name in first)
    spared_thin = lora.r * sum(shapes[name][1] for name in first if name in targets)
    # Computing again stops at the last tensor that is needed, before a layer's last product.
    out, into = shapes["down_proj"]
    adapted_last = "down_proj" in targets
    last = again * layers * (0 if adapted_last else out * into)
    seconds = lora.r * sum(shapes[name][0] for name in targets if name != "down_proj")
    firsts = lora.r * sum(shapes[name][1] for name in targets)
    thin_again = {"none": 0, "selective": seconds, "full": firsts + seconds}[mode]
    remade = sum(shapes[name][0] * shapes[name][1] for name in REMADE[save])
    remade_thin = lora.r * sum(shapes[name][0] for name in REMADE[save])
    scores = 2.0 * tokens * attended * geometry.num_heads * geometry.head_dim
    backward_layers = layers if starts == 0 or again else layers - 1
    head = 2.0 * tokens * geometry.num_head_weights
    return Flops(
        linears=2.0 * tokens * (layers * ((2 + again) * weights + remade) - spared - last),
        adapters=2.0 * tokens * (layers * (3 * thin + thin_again + remade_thin) - spared_thin),
        attention=scores * (2 * (1 + again) * layers + 5 * backward_layers),
        head=head * 2,
    )
