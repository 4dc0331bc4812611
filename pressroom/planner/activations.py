"""Bytes of activations: what a micro-batch keeps for the backward pass, and what that pass adds.

Held against real passes in tests. Letters in formulas are those of `decoder_layer`. Knows nothing
of GPUs, strategies or weights.
"""

from dataclasses import dataclass

from pressroom.geometry import Geometry
from pressroom.planner.decoder_layer import DecoderLayer
from pressroom.planner.weights import DTYPE_BYTES
from pressroom.train_sections import DTYPES, Memory

HEAD_TOKENS = 1024
"""Whose logits exist at a time: as in `train/loss.py`."""


def kept_activations(layer: DecoderLayer) -> int:
    """Bytes that the decoder layers keep between forward and backward pass.

    Those of `DecoderLayer.kept` for each layer. Once for all there are the rotary sines and
    cosines, and where layers are computed again, the mask: t bytes a token, e t in eager attention.
    Under `none` the first layer, whose input needs no gradient, keeps less: 4 d a token.

    Args:
        layer: One of them, with what decides its bytes.
    """
    shared = 2 * layer.element * layer.geometry.head_dim * layer.tokens
    if layer.memory.activation_checkpointing != "none" and layer.attention != "flash":
        shared += layer.tokens**2 * (1 if layer.attention == "sdpa" else layer.element)
    return layer.geometry.num_layers * layer.kept + shared


def recomputed_layer(layer: DecoderLayer) -> int:
    """Bytes that a layer adds when it is computed again.

    What `none` keeps of it, less what was kept: that is given up as it is used. The layer's input
    stays, and unless the layer is lean or computes in fp32 it is no part of what `none` keeps.
    """
    if layer.memory.activation_checkpointing == "none":
        return 0
    stays = layer.input if layer.is_cast and layer.save == "plain" else 0
    return layer.whole - layer.kept + stays


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Bytes of a moment of one layer's backward pass."""

    gradients: int
    """Of activations."""
    weight: int = 0
    """Of a linear layer, dequantized for its product."""

    @property
    def total(self) -> int:
        """Both."""
        return self.gradients + self.weight


def backward_workspace(layer: DecoderLayer) -> Workspace:
    """Bytes of one layer's backward pass at its peak, beyond all that was kept or computed for it.

    The greatest of some moments, most of them in the MLP, for a Llama has f > 2 d:

    - its activation: three gradients as wide as f, less what the down projection's adapter has
      given up by then;
    - the down projection: its weight dequantized, e d f, beside its input's gradients;
    - the end of a layer that is computed again, if adapters have inputs of their own: the last one
      as it came, e f, beside four states, 4 e d;
    - where adapters cast their inputs, those in fp32, 4 f, and again 4 f with dropout;
    - eager attention's softmax: gradients before and after it in fp32, 8 h t, less all that was
      given up until then.

    Of a lean layer: SwiGLU's four, 4 e f, with gate and up where they were made again, and the
    normed input, e d; or the last weight of the MLP dequantized beside 2 e f and 2 e d.

    Within 25 % on the CPU. What kernels allocate for themselves (cuBLAS, SDPA) is not in it.
    """
    geometry, tokens = layer.geometry, layer.tokens
    hidden, inner = layer.element * geometry.hidden_size, layer.element * geometry.intermediate_size
    adapted = "down_proj" in layer.targets
    given_up = layer.adapter_input("down_proj") if adapted else 0
    weight = layer.quantized * inner * geometry.hidden_size
    if layer.save != "plain":
        remade = {"all": 0, "less": 2 * inner, "least": 2 * inner + hidden}[layer.save]
        swiglu = Workspace(gradients=tokens * (4 * inner + hidden + remade))
        product = Workspace(gradients=tokens * 2 * (inner + hidden), weight=weight)
        return max(swiglu, product, key=lambda moment: moment.total)
    moments = [
        Workspace(gradients=tokens * (3 * inner - given_up)),
        Workspace(gradients=tokens * ((1 + adapted) * inner - given_up), weight=weight),
    ]
    dropped = 1 + (layer.lora.dropout > 0)
    cast = layer.casts_inputs * 4 * geometry.intermediate_size * dropped
    if adapted and layer.has_own_inputs:
        moments.append(Workspace(gradients=tokens * (cast - inner)))
        if layer.memory.activation_checkpointing != "none":
            moments.append(Workspace(gradients=tokens * (inner + cast + 4 * hidden)))
    if layer.attention == "eager":
        scores = geometry.num_heads * tokens * (8 - layer.is_cast * layer.element)
        mlp = 3 * inner + given_up + 4 * geometry.hidden_size + hidden
        softmax = scores + hidden - layer.element * layer.queries - mlp
        moments.append(Workspace(gradients=tokens * softmax))
    return max(moments, key=lambda moment: moment.total)


@dataclass(frozen=True, kw_only=True)
class LossBytes:
    """Bytes of the last norm, the output head and the loss, when every token is trained."""

    kept: int
    """Until the backward pass."""
    peak: int
    """In the head, `kept` among them."""


def loss_bytes(geometry: Geometry, memory: Memory, tokens: int) -> LossBytes:
    """Bytes of the last norm and of `train/loss.py`, whose gradient is made in the forward pass.

    A token leaves its state before the last norm in fp32 with its scale, 4 d + 4, the gradient of
    the head's input, e d, and its place, 8. The peak adds that input, before and after it is
    picked out, 2 e d, and the logits of a piece, e V, with their logarithms in fp32, 4 V: while
    those are made the logits are there in fp32 too, 4 V, unless they are so anyway; then it is the
    piece's gradient that comes on top, e d.
    """
    element, hidden = DTYPE_BYTES[DTYPES[memory.precision]], geometry.hidden_size
    kept = tokens * ((4 + element) * hidden + 4 + 8)
    besides = 4 * geometry.vocab_size if element < 4 else element * hidden
    piece = min(tokens, HEAD_TOKENS) * (geometry.vocab_size * (element + 4) + besides)
    return LossBytes(kept=kept, peak=kept + 2 * tokens * element * hidden + piece)
