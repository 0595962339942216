"""Packed batches: the vectors of padded ones, and under no attention but their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stella_ray.encode import attention
from stella_ray.encode.attention import PACKED, packed_attention
from stella_ray.encode.encoder import Encoder
from stella_ray.encode.forward import PackedForward, PaddedForward
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import ModelError
from tests.encode.conftest import cosines, plain, texts_of

TEXTS = texts_of(1, 2, 7, 7, 30, 64, 200, 503, 509, 600)
KINDS = ["loud_encoder", "loud_cls_encoder", "xlmr_encoder"]
no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def pooling(kind: str) -> Any:
    return "cls" if kind == "loud_cls_encoder" else "mean"


def load(kind: str, request: pytest.FixtureRequest, **settings: Any) -> Encoder:
    path = str(request.getfixturevalue(kind))
    return Encoder(EncoderSettings(path=path, pooling=pooling(kind), max_tokens=512, **settings))


def pack(encoder: Encoder) -> Encoder:
    """Make an encoder on a CPU pack as it does on CUDA."""
    model, pooling = encoder.forward.plain, encoder.spec.pooling
    model.set_attn_implementation(PACKED)
    encoder.forward = PackedForward(model, pooling, model.dtype)
    return encoder


@pytest.mark.parametrize("token_budget", [512, 1_100, 65_536])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_vectors_are_those_of_padded_batches_and_of_plain_transformers(
    kind: str, token_budget: int, request: pytest.FixtureRequest
) -> None:
    padded = load(kind, request, device="cpu", token_budget=token_budget).embed(TEXTS, "none")
    encoder = pack(load(kind, request, device="cpu", token_budget=token_budget))
    packed = encoder.embed(TEXTS, "none")
    alone = plain(Path(encoder.spec.folder), TEXTS, pooling(kind), 512)
    np.testing.assert_allclose(packed, padded, atol=2e-6)
    assert cosines(packed, alone).min() > 0.999999


@pytest.mark.parametrize("cls", [False, True])
def test_packed_rows_count_no_padding(
    cls: bool, loud_encoder: Path, loud_cls_encoder: Path
) -> None:
    encoder = pack(Encoder(str(loud_cls_encoder if cls else loud_encoder)))
    rows = encoder.tokenizer(TEXTS)
    assert encoder.embed_tokens(rows).padded_tokens.tolist() == rows.lengths.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_packed_ids_under_another_attention_would_give_other_vectors(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """Why the packed path must have its own attention, and that these encoders would show it."""
    encoder = pack(load(kind, request, device="cpu", token_budget=65_536))
    right = encoder.embed(TEXTS, "none")
    encoder.forward.model.set_attn_implementation("sdpa")
    assert cosines(right, encoder.embed(TEXTS, "none")).min() < 0.99


def test_a_document_is_blind_to_its_neighbours() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 12, 16)
    starts = torch.tensor([0, 3, 4, 12], dtype=torch.int32)
    module = torch.nn.Identity()
    before, _ = packed_attention(module, q, k, v, None, cu_seq_lens_q=starts, max_length_q=8)
    for x in (q, k, v):
        x[:, :, 4:] = 100 * torch.randn(1, 2, 8, 16)
    after, _ = packed_attention(module, q, k, v, None, cu_seq_lens_q=starts, max_length_q=8)
    assert before.shape == (1, 12, 2, 16)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.isclose(before[:, 4:], after[:, 4:]).any()


def test_scaling_is_applied_and_is_one_over_the_root_of_the_head_size_by_default() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 5, 16)
    packing = {"cu_seq_lens_q": torch.tensor([0, 5], dtype=torch.int32), "max_length_q": 5}
    module = torch.nn.Identity()
    for scaling in (0.25, 1.0):
        weights = torch.softmax(q @ k.transpose(-1, -2) * scaling, -1)
        out, _ = packed_attention(module, q, k, v, None, scaling=scaling, **packing)
        torch.testing.assert_close(out, (weights @ v).transpose(1, 2))
    default, _ = packed_attention(module, q, k, v, None, **packing)
    out, _ = packed_attention(module, q, k, v, None, scaling=0.25, **packing)
    torch.testing.assert_close(default, out)


@pytest.mark.parametrize("wrong", ["no starts", "a mask", "dropout"])
def test_packed_attention_refuses_what_it_would_get_wrong(wrong: str) -> None:
    q = k = v = torch.zeros(1, 2, 5, 16)
    packing: dict[str, Any] = {"cu_seq_lens_q": torch.tensor([0, 5], dtype=torch.int32)}
    mask, dropout = None, 0.0
    if wrong == "no starts":
        packing = {}
    elif wrong == "a mask":
        mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    else:
        dropout = 0.1
    with pytest.raises(RuntimeError, match="needs cu_seq_lens_q, no mask and no dropout"):
        packed_attention(
            torch.nn.Identity(), q, k, v, mask, dropout=dropout, max_length_q=5, **packing
        )


def test_a_packing_model_refuses_a_padded_batch_and_training(loud_encoder: Path) -> None:
    encoder = pack(Encoder(str(loud_encoder)))
    packing = encoder.forward
    encoder.forward = PaddedForward(packing.model, "mean", packing.dtype)
    with pytest.raises(ModelError, match="this is a bug"):
        encoder.embed(TEXTS)
    encoder.forward = packing
    encoder.forward.model.train()
    with pytest.raises(ModelError, match="no dropout"):
        encoder.embed(TEXTS)


def test_registering_twice_changes_nothing(loud_encoder: Path) -> None:
    attention.register()
    attention.register()
    vectors = pack(Encoder(str(loud_encoder))).embed(TEXTS)
    np.testing.assert_allclose(vectors, Encoder(str(loud_encoder)).embed(TEXTS), atol=2e-6)


@pytest.mark.gpu
@no_cuda
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_on_cuda_agrees_with_plain_transformers_in_float32(
    kind: str, dtype: Any, request: pytest.FixtureRequest
) -> None:
    encoder = load(kind, request, device="cuda", dtype=dtype)
    assert encoder.forward.packed
    alone = plain(Path(encoder.spec.folder), TEXTS, pooling(kind), 512)
    assert cosines(encoder.embed(TEXTS, "none"), alone).min() >= 0.999


@pytest.mark.gpu
@no_cuda
@pytest.mark.parametrize("kind", KINDS)
def test_float32_on_cuda_is_padded_and_agrees_with_plain_transformers(
    kind: str, request: pytest.FixtureRequest
) -> None:
    encoder = load(kind, request, device="cuda", dtype="float32")
    assert not encoder.forward.packed
    alone = plain(Path(encoder.spec.folder), TEXTS, pooling(kind), 512)
    assert cosines(encoder.embed(TEXTS, "none"), alone).min() >= 0.9999
