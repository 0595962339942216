"""int8 on a CPU: near float32's vectors, whatever stands beside a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stella_ray import Encoder
from stella_ray.encode.models import EncoderSettings
from stella_ray.encode.quantised import Int8Linear, check_int8
from stella_ray.errors import SettingsError
from tests.encode.conftest import cosines, texts_of

vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="needs a CPU with AVX512 VNNI")


def load(folder: Path, dtype: str = "int8") -> Encoder:
    settings: dict[str, Any] = {"dtype": dtype, "device": "cpu"}
    if folder.name not in ("mean", "cls"):  # without sentence-transformers files
        settings["pooling"] = "mean"
    return Encoder(EncoderSettings(path=str(folder), **settings))


@vnni
@pytest.mark.parametrize("kind", ["loud_encoder", "loud_cls_encoder", "xlmr_encoder"])
def test_int8_keeps_the_vectors_of_float32(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    texts = ["", *texts_of(1, 5, 30, 200, 400)]
    same = cosines(load(folder).embed(texts), load(folder, "float32").embed(texts))
    assert same.min() > 0.998  # 32 numbers a token round less well than 384


@vnni
def test_int8_vectors_do_not_depend_on_their_neighbours(loud_encoder: Path) -> None:
    encoder, texts = load(loud_encoder), texts_of(3, 17, 120, 300)
    alone = np.concatenate([encoder.embed([text]) for text in texts])
    assert cosines(encoder.embed(texts), alone).min() > 0.9999


@vnni
def test_an_int8_product_errs_by_its_rounding_alone() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48)
    x_TD = torch.randn(20, 64) * torch.logspace(-3, 3, 20)[:, None]
    x_TD[7] = 0  # nothing to scale by
    with torch.inference_mode():
        want, got = linear(x_TD), Int8Linear(linear)(x_TD)
    # Each of 64 products errs by half a step of either factor at most; in practice a tenth of that.
    size = x_TD.abs().amax(1) * linear.weight.abs().amax() * 64
    assert ((got - want).abs().amax(1) / (size + 1e-6)).max() < 1 / 255
    assert torch.allclose(got[7], linear.bias, atol=1e-6)


@vnni
def test_the_reference_of_an_int8_encoder_is_float32(loud_encoder: Path) -> None:
    encoder, texts = load(loud_encoder), texts_of(5, 50)
    rows = encoder.tokenizer(texts)
    same = cosines(encoder.reference(rows), load(loud_encoder, "float32").embed(texts, "none"))
    assert same.min() > 0.99999


def test_int8_is_refused_where_it_would_be_slow_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="for a CPU; found device cuda"):
        check_int8(torch.device("cuda"))
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(SettingsError, match="AVX512 VNNI, which this one lacks"):
        check_int8(torch.device("cpu"))


@vnni
def test_int8_of_another_kind_of_model_is_refused(copy: Any, bare_encoder: Path) -> None:
    folder = copy(bare_encoder, config={"model_type": "distilbert"})
    with pytest.raises(SettingsError, match=r"for models of type bert.* is distilbert"):
        load(folder)
