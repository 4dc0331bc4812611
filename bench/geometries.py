"""The shapes that are measured: Llama 2's, and a tiny one for a CPU."""

from pressroom.geometry import SIZES, Geometry

TINY = Geometry(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
)
GEOMETRIES = {**SIZES, "tiny": TINY}
