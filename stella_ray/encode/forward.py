"""A batch of token ids to one vector a row: the three ways through the model, and which to take.

Legend: T tokens of all rows back to back, B rows, D numbers of a vector.
"""

from __future__ import annotations

import importlib.util
import time
from typing import Protocol

import numpy as np
import torch
import transformers
from torch import Tensor

from stella_ray.encode import attention
from stella_ray.encode.fused import FusedBert, fusible, pack
from stella_ray.encode.layers import JoinedLinear, with_own_layers
from stella_ray.encode.loading import find_device, find_dtype, load_model
from stella_ray.encode.models import EncoderSettings, EncoderSpec, Pooling
from stella_ray.encode.quantised import Int8Linear
from stella_ray.errors import SettingsError

CPU_TOKEN_BUDGET, CUDA_TOKEN_BUDGET = 2_048, 65_536


class Forward(Protocol):
    """One way through the model.

    Attributes:
        packed: whether rows stand back to back, so that a batch costs no padding.
        token_budget: most tokens in a batch, where neither the settings nor a probe say.
        vocabulary: token ids from 0 to below this one have an embedding.
        dtype: of weights and activations.
    """

    packed: bool
    token_budget: int
    vocabulary: int
    dtype: torch.dtype

    def __call__(self, rows: list[np.ndarray]) -> Tensor:
        """Token ids, int [tokens] each, longest first, to pooled vectors, float32 [B, D].

        On CUDA it returns before the device has computed them.
        """


class _ThroughTransformers:
    """What the two ways through transformers' model share."""

    def __init__(
        self, model: transformers.PreTrainedModel, pooling: Pooling, dtype: torch.dtype
    ) -> None:
        self.model, self.pooling, self.dtype = model, pooling, dtype
        self.device: torch.device = model.device
        self.vocabulary = int(model.get_input_embeddings().num_embeddings)
        self.token_budget = CUDA_TOKEN_BUDGET if self.device.type == "cuda" else CPU_TOKEN_BUDGET


class PaddedForward(_ThroughTransformers):
    """Rows padded to the longest, through transformers' model: any architecture.

    Attributes:
        plain: the model as transformers has it, in float32, where it is at hand.
    """

    packed = False
    plain: transformers.PreTrainedModel | None = None

    def __call__(self, rows: list[np.ndarray]) -> Tensor:
        """See `Forward`."""
        longest = max(len(row) for row in rows)
        ids = np.full((len(rows), longest), self.model.config.pad_token_id or 0, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        mask_BT = _send(mask, self.device)
        hidden_BTD: Tensor = self.model(
            input_ids=_send(ids, self.device), attention_mask=mask_BT
        ).last_hidden_state.float()
        if self.pooling == "cls":
            return hidden_BTD[:, 0]
        weight_BT1 = mask_BT[:, :, None].float()
        return (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)


class PackedForward(_ThroughTransformers):
    """Rows back to back, through transformers' model with `attention.packed_attention`."""

    packed = True

    def __init__(
        self, model: transformers.PreTrainedModel, pooling: Pooling, dtype: torch.dtype
    ) -> None:
        super().__init__(model, pooling, dtype)
        # RoBERTa's positions start behind the pad's.
        bert = model.config.model_type == "bert"
        self.first_place: int = 0 if bert else model.config.pad_token_id + 1

    def __call__(self, rows: list[np.ndarray]) -> Tensor:
        """See `Forward`."""
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        starts = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths) + self.first_place
        ids_1T = _send(np.concatenate(rows).astype(np.int64), self.device)[None]
        starts_B = _send(starts.astype(np.int32), self.device)
        hidden_TD: Tensor = self.model(
            input_ids=ids_1T,
            position_ids=_send(places, self.device)[None],
            token_type_ids=torch.zeros_like(ids_1T),
            cu_seq_lens_q=starts_B,
            max_length_q=int(lengths.max()),
        ).last_hidden_state[0]
        if self.pooling == "cls":
            return hidden_TD[starts_B[:-1].long()].float()
        lengths_B = _send(lengths, self.device)
        pooled_BD: Tensor = torch.segment_reduce(hidden_TD.float(), "mean", lengths=lengths_B)
        return pooled_BD


class FusedForward:
    """Rows back to back, through `fused.FusedBert`: the fastest on a GPU."""

    packed = True
    token_budget = CUDA_TOKEN_BUDGET

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        pooling: Pooling,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        from stella_ray.encode import kernels  # which imports Triton

        self.kernels, self.pooling, self.dtype, self.device = kernels, pooling, dtype, device
        self.bert = FusedBert(model, dtype, device)
        self.vocabulary = len(self.bert.words)

    def __call__(self, rows: list[np.ndarray]) -> Tensor:
        """See `Forward`."""
        packed = pack(rows, self.bert.first_place, self.kernels.QUERIES, self.device)
        hidden_TD = self.bert(packed)
        if self.pooling == "cls":
            return hidden_TD[packed.starts_B[:-1]].float()
        return self.kernels.mean(hidden_TD, packed.starts_B)


class Pending:
    """A batch on its way: the device may still be at it.

    Args:
        forward: how.
        rows: token ids, longest first.
        device: where.
    """

    def __init__(self, forward: Forward, rows: list[np.ndarray], device: torch.device) -> None:
        began = time.perf_counter()
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        if device.type == "cuda":
            # A thread that waits for a blocking event leaves the core to the tokenisers.
            first, last = (torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2))
            first.record()
        vectors_BD = torch.nn.functional.normalize(forward(rows), dim=-1)
        if device.type == "cuda":
            self._vectors = torch.empty(vectors_BD.shape, pin_memory=True)
            self._vectors.copy_(vectors_BD, non_blocking=True)
            last.record()
            self._events = first, last
        else:
            self._vectors = vectors_BD
        self._seconds = time.perf_counter() - began

    def result(self) -> tuple[np.ndarray, float]:
        """Unit vectors, float32 [B, D], and the seconds that the device took.

        Raises:
            torch.AcceleratorError: the device is lost to this process.
        """
        if self._events:
            first, last = self._events
            last.synchronize()
            self._seconds = first.elapsed_time(last) / 1_000
        return self._vectors.numpy(), self._seconds


def _send(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device; on CUDA nothing waits for it."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def load_forward(spec: EncoderSpec, settings: EncoderSettings) -> tuple[Forward, torch.device]:
    """Load an encoder's weights the way that its settings, the device and its kind allow.

    Raises:
        ModelError: the weights can't be loaded.
        SettingsError: the implementation asked for can't serve this model on this device.
    """
    device = find_device(settings.device)
    dtype = find_dtype(settings.dtype, device)
    asked = settings.implementation
    half = device.type == "cuda" and dtype != torch.float32
    ampere = half and torch.cuda.get_device_capability(device) >= (8, 0)
    joinable = spec.model_type in attention.PACKABLE
    packable = ampere and joinable
    why_not = None if packable else "a GPU of Ampere or later, 16-bit numbers and a BERT or RoBERTa"
    if asked in ("fused", "packed") and why_not:
        raise SettingsError(
            f"implementation {asked} needs {why_not}; found a {spec.model_type} in"
            f" {str(dtype).removeprefix('torch.')} on {device}; use auto"
        )
    if packable and asked in ("auto", "fused"):
        model = load_model(spec, torch.float32, packed=False)
        if importlib.util.find_spec("triton") and fusible(model):
            return FusedForward(model, spec.pooling, dtype, device), device
        if asked == "fused":
            raise SettingsError(
                f"implementation fused needs Triton and a GELU BERT; {spec.name} or this"
                " installation isn't; use auto"
            )
    packed = packable and asked != "padded"
    model = load_model(spec, dtype, packed=packed).to(device)
    if packed:
        return PackedForward(model, spec.pooling, dtype), device
    plain = model if dtype == torch.float32 else None
    if dtype == torch.int8:
        model = with_own_layers(model, Int8Linear)
    elif plain and device.type == "cpu" and joinable and asked == "auto":
        model = with_own_layers(plain, JoinedLinear)
    forward = PaddedForward(model, spec.pooling, dtype)
    forward.plain = plain
    return forward, device
