"""Dropout by text: the share that is dropped, and that a text's mask is its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stella_ray.learn.dropout import KeyedDropout, TokenKeys, use_keyed_dropout

CPU = torch.device("cpu")


def kept(keys: TokenKeys, site: str = "layer.0", p: float = 0.1, size: int = 64) -> torch.Tensor:
    layer = KeyedDropout(p, site, keys)
    assert keys.now is not None
    return layer(torch.ones(*keys.now.shape, size)) > 0


def keys_of(lengths: list[int], rows: list[int], *, packed: bool = False) -> TokenKeys:
    keys = TokenKeys()
    keys.set(lengths, np.array(rows, np.uint64), CPU, packed=packed)
    return keys


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_share_is_dropped_and_the_rest_is_scaled(p: float) -> None:
    keys = keys_of([300] * 8, list(range(8)))
    out = KeyedDropout(p, "a", keys)(torch.ones(8, 300, 64))
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
    # 153,600 draws: five standard deviations are 0.0038 for p 0.1, 0.0064 for 0.5.
    assert (out == 0).float().mean() == pytest.approx(p, abs=0.0064)


def test_masks_are_alike_no_more_than_by_chance() -> None:
    keys = keys_of([300] * 8, list(range(8)))
    mask = (~kept(keys, p=0.5)).float() - 0.5
    other_site = (~kept(keys, "layer.1", p=0.5)).float() - 0.5
    chance = 5 * 0.25 / mask.numel() ** 0.5
    for a, b in (
        (mask, other_site),
        (mask[:-1], mask[1:]),  # rows
        (mask[:, :-1], mask[:, 1:]),  # tokens
        (mask[:, :, :-1], mask[:, :, 1:]),  # features
        (mask[:, :-2, :-1], mask[:, 2:, 1:]),
    ):
        assert abs(float((a * b).mean())) < chance * 1.1


def test_each_feature_and_each_token_is_dropped_as_often() -> None:
    mask = ~kept(keys_of([512] * 16, list(range(16))), p=0.5)
    for over in ((0, 1), (0, 2), (1, 2)):
        shares = mask.float().mean(over)
        draws = mask.numel() / shares.numel()
        assert float((shares - 0.5).abs().max()) < 5 * 0.5 / draws**0.5


def test_a_texts_mask_is_the_same_in_any_batch_padded_or_packed() -> None:
    alone = kept(keys_of([5], [7]))[0]
    padded = kept(keys_of([9, 5], [3, 7]))[1, :5]
    packed = kept(keys_of([9, 5], [3, 7], packed=True))[0, 9:]
    assert (alone == padded).all()
    assert (alone == packed).all()
    assert not (alone == kept(keys_of([5], [8]))[0]).all()


def test_a_model_drops_behind_its_layers_and_not_in_its_attention(tiny_encoder: Path) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny_encoder)
    keys = use_keyed_dropout(model, 0.25)
    places = {n: m for n, m in model.named_modules() if isinstance(m, KeyedDropout)}
    assert len(places) == 1 + 2 * 2  # embeddings; two in each of two layers
    assert {one.p for one in places.values()} == {0.25}
    left = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert left == [0.0, 0.0]
    model.train()
    ids = torch.arange(10, 20)[None]
    with pytest.raises(RuntimeError, match="bug"):
        model(input_ids=ids)
    keys.set([10], np.array([1], np.uint64), CPU, packed=False)
    first = model(input_ids=ids).last_hidden_state
    assert torch.equal(first, model(input_ids=ids).last_hidden_state)
    model.eval()
    assert not torch.allclose(first, model(input_ids=ids).last_hidden_state)
