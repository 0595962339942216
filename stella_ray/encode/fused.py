"""BERT's forward pass in few, large steps, for GPUs.

Rows stand back to back, without padding. Per layer: one product for queries, keys and values; one
attention kernel; products that add the residual or apply GELU as they store (cuBLASLt epilogues);
layer norms in place. Weights come from transformers' model; vectors agree with its float32 forward
to a cosine of 0.999.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import transformers
from torch import Tensor

FUSIBLE = ("bert", "roberta", "xlm-roberta")
"""Model types whose layers this is the forward pass of."""

GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast")
"""Activations that cuBLASLt's GELU (the tanh form) serves: the exact form differs from it by less
than 5e-4, an eighth of what bfloat16 rounds off near 1."""


@dataclass(frozen=True)
class Packed:
    """Rows of token ids back to back, on the device, int32.

    Legend: T tokens, B rows, tiles of at most `kernels.QUERIES` tokens of one row.

    Attributes:
        ids_T: token ids.
        places_T: each token's position embedding.
        starts_B: where each row starts, [B + 1].
        tile_row: the row of each tile.
        tile_first: a tile's first token, counted from the start of its row.
    """

    ids_T: Tensor
    places_T: Tensor
    starts_B: Tensor
    tile_row: Tensor
    tile_first: Tensor


def pack(
    rows: list[np.ndarray], first_place: int, tile_tokens: int, device: torch.device
) -> Packed:
    """Lay rows back to back and send them to the device in one copy that nothing waits for.

    Args:
        rows: token ids, int [tokens] each.
        first_place: position embedding of a row's first token.
        tile_tokens: most tokens of a tile.
        device: where to.
    """
    lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
    tiles = -(-lengths // tile_tokens)
    parts = [
        np.concatenate(rows),
        _counted(lengths) + first_place,
        np.concatenate([[0], np.cumsum(lengths)]),
        np.repeat(np.arange(len(rows)), tiles),
        _counted(tiles) * tile_tokens,
    ]
    # Each part starts on 16 bytes: Triton compiles other kernels for pointers that don't.
    starts = np.cumsum([0, *(-(-len(part) // 4) * 4 for part in parts)])
    host = torch.empty(int(starts[-1]), dtype=torch.int32, pin_memory=device.type == "cuda")
    flat = host.numpy()
    for part, start in zip(parts, starts[:-1], strict=True):
        flat[start : start + len(part)] = part
    there = host.to(device, non_blocking=True)
    return Packed(
        *(there[a : a + len(part)] for part, a in zip(parts, starts[:-1].tolist(), strict=True))
    )


def _counted(counts: np.ndarray) -> np.ndarray:
    """0, 1, … anew for each count: [2, 3] gives [0, 1, 0, 1, 2]."""
    ends = np.cumsum(counts)
    counted: np.ndarray = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    return counted


@dataclass(frozen=True)
class _Layer:
    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    out_bias: Tensor
    norm: tuple[Tensor, Tensor]
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor
    last_norm: tuple[Tensor, Tensor]


def fusible(model: transformers.PreTrainedModel) -> bool:
    """Whether `FusedBert` computes what this model does."""
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    return (
        config.model_type in FUSIBLE
        and config.hidden_act in GELU
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
        and not getattr(config, "is_decoder", False)
        and size in (16, 32, 64, 128)
    )


class FusedBert:
    """The forward pass over packed rows of a model that is `fusible`.

    Args:
        model: transformers' model, whose weights are copied.
        dtype: of weights and activations: bfloat16 or float16 (float32 for tests).
        device: where it runs.
    """

    def __init__(
        self, model: transformers.PreTrainedModel, dtype: torch.dtype, device: torch.device
    ) -> None:
        config = model.config
        self.heads: int = config.num_attention_heads
        self.epsilon: float = config.layer_norm_eps
        self.device = device
        # RoBERTa's positions start behind the pad's.
        self.first_place: int = 0 if config.model_type == "bert" else config.pad_token_id + 1

        def to(*parts: Tensor) -> Tensor:
            return torch.cat([part.detach() for part in parts]).to(device, dtype)

        def norm(layer: torch.nn.LayerNorm) -> tuple[Tensor, Tensor]:
            return layer.weight.detach().to(device).float(), layer.bias.detach().to(device).float()

        table = model.embeddings
        self.words = to(table.word_embeddings.weight)
        kinds = table.token_type_embeddings.weight.detach().float()
        self.places = to(table.position_embeddings.weight.detach().float() + kinds[0])
        self.norm = norm(table.LayerNorm)
        self.layers = []
        for layer in model.encoder.layer:
            asks, ends = layer.attention.self, layer.attention.output
            up, down = layer.intermediate.dense, layer.output
            self.layers.append(
                _Layer(
                    qkv=to(asks.query.weight, asks.key.weight, asks.value.weight).t(),
                    qkv_bias=to(asks.query.bias, asks.key.bias, asks.value.bias),
                    out=to(ends.dense.weight).t(),
                    out_bias=ends.dense.bias.detach().to(device).float(),
                    norm=norm(ends.LayerNorm),
                    up=to(up.weight).t(),
                    up_bias=to(up.bias),
                    down=to(down.dense.weight).t(),
                    down_bias=down.dense.bias.detach().to(device).float(),
                    last_norm=norm(down.LayerNorm),
                )
            )

    def __call__(self, rows: Packed) -> Tensor:
        """Token vectors of the last layer, [T, D]."""
        from stella_ray.encode import kernels

        x_TD = kernels.embed(
            rows.ids_T, rows.places_T, self.words, self.places, *self.norm, self.epsilon
        )
        for layer in self.layers:
            qkv = torch.addmm(layer.qkv_bias, x_TD, layer.qkv)
            seen_TD = kernels.attend(qkv, rows.starts_B, rows.tile_row, rows.tile_first, self.heads)
            # In place, so that the product starts from the residual instead of from zeros.
            x_TD.addmm_(seen_TD, layer.out)
            kernels.norm_(x_TD, layer.out_bias, *layer.norm, self.epsilon)
            inner_TF = torch._addmm_activation(layer.up_bias, x_TD, layer.up, use_gelu=True)
            x_TD.addmm_(inner_TF, layer.down)
            kernels.norm_(x_TD, layer.down_bias, *layer.last_norm, self.epsilon)
        return x_TD
