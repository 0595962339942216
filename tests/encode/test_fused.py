"""The fused encoder: its kernels, run by Triton's interpreter on a CPU, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stella_ray.encode.encoder import Encoder
from stella_ray.encode.fused import FusedBert, fusible, pack
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import SettingsError
from tests.encode.conftest import Copy, cosines, plain, texts_of

cuda = torch.cuda.is_available()
no_cuda = pytest.mark.skipif(not cuda, reason="needs a CUDA device")
kernels = pytest.importorskip("stella_ray.encode.kernels", reason="needs Triton")
forward = pytest.importorskip("stella_ray.encode.forward")

DEVICE = torch.device("cuda" if cuda else "cpu")
DTYPES = [torch.float16, torch.bfloat16] if cuda else [torch.float32, torch.float16]
"""Triton's interpreter has no products in bfloat16."""
CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
KINDS = ["loud_encoder", "loud_cls_encoder", "xlmr_encoder"]
TEXTS = texts_of(*([1, 2, 7, 7, 30, 63, 64, 65, 200, 503, 509, 600] if cuda else [1, 7, 62, 63]))
"""The interpreter takes a second for a thousand tokens."""


def off(found: torch.Tensor, right: torch.Tensor) -> float:
    """How far, in parts of the right one's length."""
    return float((found.double().cpu() - right.double().cpu()).norm() / right.double().norm())


def fuse(encoder: Encoder, dtype: torch.dtype = torch.float32) -> Encoder:
    """Make an encoder run its rows through the fused kernels."""
    model = encoder.forward.model.float()
    encoder.forward = forward.FusedForward(model, encoder.spec.pooling, dtype, DEVICE)
    return encoder


def load(kind: str, request: pytest.FixtureRequest, **how: Any) -> Encoder:
    path = str(request.getfixturevalue(kind))
    pooling: Any = "cls" if kind == "loud_cls_encoder" else "mean"
    return Encoder(EncoderSettings(path=path, pooling=pooling, **{"max_tokens": 512, **how}))


@pytest.mark.parametrize("token_budget", [512, 65_536] if cuda else [100])
@pytest.mark.parametrize("kind", KINDS)
def test_fused_vectors_are_those_of_plain_transformers(
    kind: str, token_budget: int, request: pytest.FixtureRequest
) -> None:
    dtype = DTYPES[0]
    how = {"token_budget": token_budget, "max_tokens": 512 if cuda else 100}
    encoder = fuse(load(kind, request, implementation="padded", device="cpu", **how), dtype)
    encoder.device = DEVICE
    alone = plain(Path(encoder.spec.folder), TEXTS, encoder.spec.pooling, 512)
    assert cosines(encoder.embed(TEXTS, "none"), alone).min() > (0.999 if cuda else 0.999999)


@given(st.lists(st.integers(1, 150), min_size=1, max_size=4), st.sampled_from([16, 64]))
@settings(max_examples=8, deadline=None)
def test_attention_is_softmax_over_the_rows_own_tokens(lengths: list[int], size: int) -> None:
    heads, dtype = 2, DTYPES[0]
    dim = heads * size
    torch.manual_seed(sum(lengths))
    rows = pack([np.zeros(n, int) for n in lengths], 0, kernels.QUERIES, DEVICE)
    # A row that looked into another would see numbers of another size.
    loud = torch.repeat_interleave(torch.arange(1.0, len(lengths) + 1), torch.tensor(lengths))
    qkv = (torch.randn(sum(lengths), 3 * dim) * loud[:, None]).to(DEVICE, dtype)
    found = kernels.attend(qkv, rows.starts_B, rows.tile_row, rows.tile_first, heads)
    for start, n in zip(np.cumsum([0, *lengths]), lengths, strict=False):
        own = qkv[start : start + n].double().view(n, 3, heads, size).permute(1, 2, 0, 3)
        right = torch.nn.functional.scaled_dot_product_attention(*own[:, None])[0]
        right = right.transpose(0, 1).reshape(n, dim)
        assert off(found[start : start + n], right) < CLOSE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [32, 96, 768])
def test_norm_embedding_and_mean_are_those_of_torch(dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(dim)
    x, words, places = (torch.randn(n, dim).to(DEVICE, dtype) for n in (50, 90, 60))
    bias, scale, shift = torch.randn(3, dim, device=DEVICE)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(
            x.double(), (dim,), scale.double(), shift.double(), 1e-12
        )

    right = norm(x.double() + bias.double())
    assert off(kernels.norm_(x.clone(), bias, scale, shift, 1e-12), right) < CLOSE[dtype]
    ids = torch.randint(0, 90, (50,), dtype=torch.int32, device=DEVICE)
    at = torch.arange(50, dtype=torch.int32, device=DEVICE)
    found = kernels.embed(ids, at, words, places, scale, shift, 1e-12)
    assert off(found, norm(words[ids.long()].double() + places[:50].double())) < CLOSE[dtype]
    starts = torch.tensor([0, 1, 34, 50], dtype=torch.int32, device=DEVICE)
    means = torch.stack([x[:1].double().mean(0), x[1:34].double().mean(0), x[34:].double().mean(0)])
    assert off(kernels.mean(x, starts), means) < 1e-6


def test_rows_are_laid_back_to_back_with_their_tiles() -> None:
    rows = pack([np.arange(5) + 10, np.array([7]), np.arange(3)], 2, 4, torch.device("cpu"))
    assert rows.ids_T.tolist() == [10, 11, 12, 13, 14, 7, 0, 1, 2]
    assert rows.places_T.tolist() == [2, 3, 4, 5, 6, 2, 2, 3, 4]
    assert rows.starts_B.tolist() == [0, 5, 6, 9]
    assert rows.tile_row.tolist() == [0, 0, 1, 2]
    assert rows.tile_first.tolist() == [0, 4, 0, 0]
    assert all(part.data_ptr() % 16 == 0 for part in vars(rows).values())


@pytest.mark.parametrize(
    ("changed", "fine"),
    [({}, True), ({"hidden_act": "gelu_new"}, True), ({"hidden_act": "relu"}, False),
     ({"is_decoder": True}, False), ({"num_attention_heads": 8}, False)],
)  # fmt: skip
def test_what_it_would_compute_otherwise_is_not_fused(
    changed: dict[str, Any], fine: bool, loud_encoder: Path, copy: Copy
) -> None:
    from transformers import AutoModel

    folder = copy(loud_encoder, config=changed)
    assert fusible(AutoModel.from_pretrained(folder)) == fine


def test_a_model_fused_in_other_numbers_keeps_its_norms_in_float32(loud_encoder: Path) -> None:
    from transformers import AutoModel

    bert = FusedBert(AutoModel.from_pretrained(loud_encoder), torch.float16, DEVICE)
    assert bert.words.dtype == bert.layers[0].qkv.dtype == torch.float16
    assert bert.norm[0].dtype == bert.layers[0].out_bias.dtype == torch.float32


@pytest.mark.parametrize("asked", ["fused", "packed"])
def test_an_implementation_that_the_device_can_not_run_is_refused(
    asked: Any, loud_encoder: Path
) -> None:
    how = EncoderSettings(path=str(loud_encoder), implementation=asked, device="cpu")
    with pytest.raises(SettingsError, match=f"implementation {asked} needs a GPU of Ampere") as e:
        Encoder(how)
    assert "found a bert in float32 on cpu; use auto" in str(e.value)


@pytest.mark.gpu
@no_cuda
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("implementation", ["fused", "packed", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_on_cuda_every_implementation_agrees_with_plain_transformers_in_float32(
    kind: str, implementation: Any, dtype: Any, request: pytest.FixtureRequest
) -> None:
    encoder = load(kind, request, device="cuda", dtype=dtype, implementation=implementation)
    name = type(encoder.forward).__name__
    assert name == f"{implementation.capitalize()}Forward"
    alone = plain(Path(encoder.spec.folder), TEXTS, encoder.spec.pooling, 512)
    assert cosines(encoder.embed(TEXTS, "none"), alone).min() >= 0.999


@pytest.mark.gpu
@no_cuda
def test_threads_that_embed_at_once_get_their_own_vectors(loud_encoder: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    encoder = Encoder(EncoderSettings(path=str(loud_encoder), token_budget=4_096))
    parts = [texts_of(*range(1, 400), seed=seed) for seed in range(8)]
    right = [encoder.embed(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(encoder.embed, parts), right, strict=True):
            np.testing.assert_array_equal(found, expected)
