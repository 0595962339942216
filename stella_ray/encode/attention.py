"""Attention over packed rows: documents back to back in one sequence, each seeing only itself.

Registered with transformers' AttentionInterface, so that BertModel and its relatives run as they
are. Packed ids under any other attention give wrong vectors without an error (tokens see their
neighbours' documents), so a packed batch must only ever meet the functions of this file.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

PACKED = "stella_packed"
"""`attn_implementation` of an encoder that packs."""

PACKABLE = ("bert", "roberta", "xlm-roberta")
"""Model types whose vectors are tested to be the same packed as alone."""


def packed_attention(
    module: torch.nn.Module,  # noqa: ARG001 - the interface's
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **packing: Any,
) -> tuple[Tensor, None]:
    """Attend within each document of a packed batch.

    Legend: T tokens of all documents, H heads, K head size.

    Args:
        module: the attention layer, unused.
        query: [1, H, T, K], as are `key` and `value`.
        key: see `query`.
        value: see `query`.
        attention_mask: must be None; documents are told apart by `cu_seq_lens_q`.
        scaling: factor on the products, 1/sqrt(K) if None.
        dropout: must be 0; packing is for inference.
        packing: `cu_seq_lens_q` int32 [documents + 1] where each starts, `max_length_q` the longest
            document.

    Returns:
        [1, T, H, K] and None.
    """
    starts: Tensor | None = packing.get("cu_seq_lens_q")
    if starts is None or attention_mask is not None or dropout:
        raise RuntimeError(
            "packed attention needs cu_seq_lens_q, no mask and no dropout; this is a bug"
        )
    if packing.get("sliding_window"):
        raise RuntimeError("packed attention has no sliding window; this is a bug")
    q_THK, k_THK, v_THK = (x[0].transpose(0, 1) for x in (query, key, value))
    if q_THK.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        longest = packing["max_length_q"]
        # Without it varlen_attn uses 1/sqrt(K), BERT's own; torch 2.10's knows no other.
        usual = scaling is None or math.isclose(scaling, q_THK.shape[-1] ** -0.5)
        scale: dict[str, Any] = {} if usual else {"scale": scaling}
        out = cast(
            "Tensor",
            varlen_attn(q_THK, k_THK, v_THK, starts, starts, longest, longest, **scale),
        )
    else:
        out = _one_by_one(q_THK, k_THK, v_THK, starts, scaling)
    return out[None], None


def _one_by_one(
    q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, starts: Tensor, scaling: float | None
) -> Tensor:
    """The CPU twin: plain attention, document by document. [T, H, K]."""
    bounds = starts.tolist()
    parts = []
    for a, b in itertools.pairwise(bounds):
        q, k, v = (x[a:b].transpose(0, 1) for x in (q_THK, k_THK, v_THK))
        parts.append(scaled_dot_product_attention(q, k, v, scale=scaling).transpose(0, 1))
    return torch.cat(parts)


def _no_mask(*_: Any, **__: Any) -> None:
    """Packed rows need no mask: `cu_seq_lens_q` keeps them apart."""


def register() -> None:
    """Make `attn_implementation=PACKED` known to transformers."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, _no_mask)
