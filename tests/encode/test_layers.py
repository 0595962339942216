"""Our layers on a CPU: the same vectors as transformers' own, and weights held once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stella_ray import Encoder
from stella_ray.encode.layers import Layers
from stella_ray.encode.models import EncoderSettings
from tests.encode.conftest import Copy, texts_of


def load(folder: Path, **how: Any) -> Encoder:
    pooling = {} if folder.name in ("mean", "cls") else {"pooling": "mean"}
    return Encoder(EncoderSettings(path=str(folder), device="cpu", **pooling, **how))


def layers_of(encoder: Encoder) -> Any:
    forward: Any = encoder.forward
    return forward.model.encoder


@pytest.mark.parametrize("kind", ["loud_encoder", "loud_cls_encoder", "xlmr_encoder"])
def test_our_layers_give_transformers_own_vectors(
    kind: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    own, plain = load(folder), load(folder, implementation="padded")
    assert isinstance(layers_of(own), Layers)
    assert not isinstance(layers_of(plain), Layers)
    texts = ["", *texts_of(1, 5, 5, 30, 200, 400)]
    np.testing.assert_allclose(own.embed(texts), plain.embed(texts), atol=2e-6)
    rows = own.tokenizer(texts)
    np.testing.assert_allclose(own.reference(rows), own.embed(texts, "none"), atol=2e-6)


def test_the_reference_shares_weights_and_nothing_else(loud_encoder: Path) -> None:
    encoder = load(loud_encoder)
    forward: Any = encoder.forward
    joined = layers_of(encoder).layers[0].qkv.weight_ND
    part = forward.plain.encoder.layer[0].attention.self.key.weight
    assert part.untyped_storage().data_ptr() == joined.untyped_storage().data_ptr()
    layers_of(encoder).layers.clear()  # the plain model doesn't go through ours
    rows, plain = encoder.tokenizer(texts_of(30)), load(loud_encoder, implementation="padded")
    np.testing.assert_allclose(encoder.reference(rows), plain.embed_tokens(rows).vectors, atol=2e-6)


def test_another_kind_of_model_keeps_its_own_layers(copy: Copy, bare_encoder: Path) -> None:
    """BERT's file under another name: without transformers, we know nothing of its layers."""
    encoder = load(copy(bare_encoder, config={"model_type": "camembert"}))
    assert not isinstance(layers_of(encoder), Layers)
