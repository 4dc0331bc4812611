"""Logits of a model of which one layer is in memory at a time, computed in fp32.

Knows nothing of what they are compared with.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch.func import functional_call
from torch.nn.functional import embedding, linear
from transformers import PreTrainedModel

from generate.merge_source import Source
from pressroom.nn.nf4 import compute_in
from pressroom.nn.pieces import Weights, empty_model

WholeTensor = Callable[[str], torch.Tensor]
"""A tensor by its name, fp32, on the device."""
LayerOf = Callable[[int], torch.nn.Module]


@dataclass(frozen=True)
class Runner:
    """Texts, and the layers that they are run through, one behind the other."""

    model: PreTrainedModel
    """On the meta device; the weights of a model take their places while a layer runs."""
    articles: list[list[int]]
    layers: list[int]
    device: torch.device
    ran: Callable[[], object]
    """Told of every layer that has run."""

    def logits(
        self, tensor: WholeTensor, layer_of: LayerOf | None = None
    ) -> Iterator[torch.Tensor]:
        """Logits [S, V] of each article.

        Args:
            tensor: The model's weights.
            layer_of: Its decoder layers, where they are more than weights.
        """
        decoder = self.model.model
        embeddings_VD = tensor("model.embed_tokens.weight")
        ids = [torch.tensor(article, device=self.device) for article in self.articles]
        hidden = [embedding(own, embeddings_VD)[None] for own in ids]
        rope = type(decoder.rotary_emb)(self.model.config).to(self.device)
        places = [torch.arange(len(own), device=self.device)[None] for own in ids]
        angles = [rope(h_BSD, place) for h_BSD, place in zip(hidden, places, strict=True)]
        for number in self.layers:
            layer = layer_of(number) if layer_of else decoder.layers[number]
            prefix = f"model.layers.{number}."
            names = () if layer_of else [name for name, _ in layer.named_parameters()]
            weights = {name: tensor(prefix + name) for name in names}
            hidden = [
                functional_call(layer, weights, (h_BSD,), {"position_embeddings": angle})
                for h_BSD, angle in zip(hidden, angles, strict=True)
            ]
            del layer, weights
            self.ran()
        norm = {"weight": tensor("model.norm.weight")}
        if not self.model.config.tie_word_embeddings:
            embeddings_VD = tensor("lm_head.weight")
        for h_BSD in hidden:
            yield linear(functional_call(decoder.norm, norm, (h_BSD,)), embeddings_VD)[0]


def as_trained(source: Source, device: torch.device) -> LayerOf:
    """Decoder layers as they were trained: those of bitsandbytes, with those of peft around them.

    Each can be asked for once.
    """
    model = empty_model(source.base, source.quantization, source.precision)
    config = LoraConfig.from_pretrained(str(source.adapter.folder))
    layers = inject_adapter_in_model(config, model, low_cpu_mem_usage=True).eval().model.layers
    weights = Weights(source.base, source.quantization, source.precision)

    def layer_of(number: int) -> torch.nn.Module:
        layer, layers[number] = layers[number], torch.nn.Identity()  # or all would stay
        prefix = f"model.layers.{number}."
        weights.fill(layer, prefix, device)
        for name, part in list(layer.named_modules()):
            for own, parameter in list(part.named_parameters(recurse=False)):
                if parameter.is_meta:
                    path = f"{prefix}{name}.{own}".replace(".default", "")
                    kept = source.adapter.tensor(path).to(device, copy=True)
                    setattr(part, own, torch.nn.Parameter(kept, requires_grad=False))
        compute_in(layer, torch.float32)
        return layer

    return layer_of
