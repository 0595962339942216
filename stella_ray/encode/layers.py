"""BERT's layers on a CPU in few, large steps, for inference.

As transformers' own, but with one product for queries, keys and values, and with sums and GELU in
place: on short texts that is a tenth of the time, in float32 (benchmarks/LOG.md).

Legend: B rows, L tokens of a row, T = B x L tokens, D inputs, N outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

Product = Callable[[Tensor], Tensor]
"""x [T, D] to x W' + b [T, N]."""


def with_own_layers(
    model: transformers.PreTrainedModel, product: Callable[..., Product]
) -> transformers.PreTrainedModel:
    """A BERT, RoBERTa or XLM-R with our layers in the place of its own.

    Args:
        model: in float32; it works as before, and shares its embeddings.
        product: makes one of linear layers that have the same input.
    """
    own = copy.copy(model)
    layers = Layers(model.encoder.layer, model.config.num_attention_heads, product)
    own._modules = {**model._modules, "encoder": layers}
    return own


class JoinedLinear:
    """y = x W' + b in float32."""

    def __init__(self, *layers: torch.nn.Linear) -> None:
        """Layers of the same input become one, their outputs side by side.

        Their weights become parts of its own, so that nothing is held twice.
        """
        self.weight_ND, self.bias_N = layers[0].weight.data, layers[0].bias.data
        if len(layers) > 1:
            self.weight_ND = torch.cat([layer.weight.data for layer in layers])
            self.bias_N = torch.cat([layer.bias.data for layer in layers])
            sizes = [layer.out_features for layer in layers]
            for layer, part in zip(layers, self.weight_ND.split(sizes), strict=True):
                layer.weight.data = part

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Float32 [T, N]."""
        return linear(x_TD, self.weight_ND, self.bias_N)


class Layers(torch.nn.Module):
    """The layers between BERT's embeddings and its last hidden state; called as transformers' own.

    Args:
        layers: transformers' BertLayer or its relatives', post-norm, in float32.
        heads: of their attention.
        product: makes one of linear layers that have the same input.
    """

    def __init__(
        self, layers: torch.nn.ModuleList, heads: int, product: Callable[..., Product]
    ) -> None:
        super().__init__()
        self.layers = [_Layer(layer, heads, product) for layer in layers]

    def forward(self, hidden_BLD: Tensor, attention_mask: Tensor | None, **_: Any) -> Any:
        """[B, L, D], and the mask of SDPA, True where a token may look, [B, 1, L, L] or None."""
        x_TD = hidden_BLD.flatten(0, 1)
        for layer in self.layers:
            x_TD = layer(x_TD, len(hidden_BLD), attention_mask)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=x_TD.view_as(hidden_BLD))


class _Layer:
    def __init__(self, layer: Any, heads: int, product: Callable[..., Product]) -> None:
        own = layer.attention.self
        self.heads = heads
        self.qkv = product(own.query, own.key, own.value)
        self.out = product(layer.attention.output.dense)
        self.up = product(layer.intermediate.dense)
        self.activation = layer.intermediate.intermediate_act_fn
        if isinstance(self.activation, transformers.activations.GELUActivation):
            self.activation = torch.ops.aten.gelu_  # the same function, in place
        self.down = product(layer.output.dense)
        self.norms = layer.attention.output.LayerNorm, layer.output.LayerNorm

    def __call__(self, x_TD: Tensor, rows: int, mask: Tensor | None) -> Tensor:
        q, k, v = (
            self.qkv(x_TD).view(rows, -1, 3, self.heads, x_TD.shape[1] // self.heads).unbind(2)
        )
        seen = scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
        )
        x_TD = _norm(self.norms[0], self.out(seen.transpose(1, 2).reshape_as(x_TD)).add_(x_TD))
        return _norm(self.norms[1], self.down(self.activation(self.up(x_TD))).add_(x_TD))


def _norm(norm: torch.nn.LayerNorm, x_TD: Tensor) -> Tensor:
    return layer_norm(x_TD, x_TD.shape[1:], norm.weight, norm.bias, norm.eps)
