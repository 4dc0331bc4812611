"""Negative log-likelihood, token by token. B sequences, S tokens, V vocabulary, D hidden size."""

import torch
from transformers import PreTrainedModel

from pressroom.dataset import IGNORE

_CHUNK_TOKENS = 1024


@torch.no_grad()
def token_nll(
    model: PreTrainedModel, input_ids_BS: torch.Tensor, labels_BS: torch.Tensor
) -> torch.Tensor:
    """NLL of each labelled token, in nats, fp32; the whole batch's logits never exist at once.

    Sequences are padded on the right: causal attention needs no mask, and padding has no label.

    Args:
        model: A causal language model, or one with adapters.
        input_ids_BS: Token ids.
        labels_BS: The ids, or -100 where a token does not count; the first of a row never does.

    Returns:
        [B, S], zero where there is no label.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden_BSD = causal.model(input_ids=input_ids_BS, use_cache=False).last_hidden_state
    head = causal.get_output_embeddings()
    nll_BS = torch.zeros(labels_BS.shape, dtype=torch.float32, device=labels_BS.device)
    counted_BS = labels_BS != IGNORE
    counted_BS[:, 0] = False
    before_ND = hidden_BSD[:, :-1][counted_BS[:, 1:]]
    labels_N = labels_BS[counted_BS]
    nll_BS[counted_BS] = torch.cat(
        [
            torch.nn.functional.cross_entropy(head(part_ND).float(), part_N, reduction="none")
            for part_ND, part_N in zip(
                before_ND.split(_CHUNK_TOKENS), labels_N.split(_CHUNK_TOKENS), strict=True
            )
        ]
        or [nll_BS.new_zeros(0)]
    )
    return nll_BS
