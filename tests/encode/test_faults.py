"""What a batch may do: raise on one text, run out of memory, lose the device; and the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stella_ray.encode.attention import PACKED
from stella_ray.encode.encoder import Encoder
from stella_ray.encode.forward import PackedForward
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import ModelError
from tests.encode.conftest import PASSAGE, POISON, cosines, plain, texts_of

TEXTS = texts_of(*([10, 60, 25, 33, 1] * 12))
BAD = "冒"
"""What `watch` raises on: a character of the vocabulary that `texts_of` doesn't use."""

Saw = list[int]


def load(folder: Path, **how: Any) -> Encoder:
    return Encoder(EncoderSettings(path=str(folder), device="cpu", **how))


def pack(encoder: Encoder) -> Encoder:
    """Make an encoder on a CPU pack as it does on CUDA."""
    model, pooling = encoder.forward.plain, encoder.spec.pooling
    model.set_attn_implementation(PACKED)
    encoder.forward = PackedForward(model, pooling, model.dtype)
    return encoder


def watch(encoder: Encoder, look: Callable[[torch.Tensor], None] = lambda ids: None) -> Saw:
    """Let `look` see the ids of every forward, and raise; returns the tokens of each."""
    saw: Saw = []

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        saw.append(kwargs["input_ids"].numel())
        look(kwargs["input_ids"])

    encoder.forward.model.register_forward_pre_hook(before, with_kwargs=True)
    return saw


def id_of(encoder: Encoder, character: str) -> int:
    return int(encoder.tokenizer([character]).values[1])


def raise_on(encoder: Encoder, character: str) -> Callable[[torch.Tensor], None]:
    bad = id_of(encoder, character)

    def look(ids: torch.Tensor) -> None:
        if (ids == bad).any():
            raise IndexError("bad luck\n  on this one")

    return look


@pytest.mark.parametrize("packed", [False, True])
def test_texts_that_make_the_encoder_raise_are_found_and_all_others_get_their_vectors(
    packed: bool, poisonable_encoder: Path
) -> None:
    encoder = load(poisonable_encoder, token_budget=65_536)
    if packed:
        pack(encoder)
    texts = list(TEXTS)
    texts[7] = texts[40] = POISON * 3
    texts[59] = "一" + POISON
    found = encoder.embed_tokens(encoder.tokenizer(texts))
    assert sorted(found.faults) == [7, 40, 59]
    assert set(found.faults.values()) == {
        f"ValueError: token id {encoder.forward.vocabulary} is outside the model's vocabulary of"
        f" {encoder.forward.vocabulary}"
    }
    assert not found.vectors[[7, 40, 59]].any()
    assert not found.padded_tokens[[7, 40, 59]].any()
    rest = np.delete(np.arange(len(texts)), [7, 40, 59])
    alone = plain(poisonable_encoder, [texts[i] for i in rest], "mean", 1_024)
    assert cosines(found.vectors[rest], alone).min() >= 0.9999
    assert (found.padded_tokens[rest] > 0).all()


def test_a_window_without_faults_has_none(loud_encoder: Path) -> None:
    encoder = load(loud_encoder)
    assert encoder.embed_tokens(encoder.tokenizer(TEXTS)).faults == {}


def test_an_id_outside_the_vocabulary_never_reaches_the_model(poisonable_encoder: Path) -> None:
    encoder = load(poisonable_encoder)
    most: list[int] = []
    watch(encoder, lambda ids: most.append(int(ids.max())))
    encoder.embed_tokens(encoder.tokenizer([*TEXTS, POISON]))
    assert max(most) < encoder.forward.vocabulary


def test_one_text_of_a_batch_is_found_in_a_few_steps(loud_encoder: Path) -> None:
    encoder = load(loud_encoder, token_budget=65_536)
    saw = watch(encoder, raise_on(encoder, BAD))
    texts = texts_of(*range(1, 65))
    texts[20] = BAD
    found = encoder.embed_tokens(encoder.tokenizer(texts))
    assert found.faults == {20: "IndexError: bad luck on this one"}
    assert len(saw) == 1 + 2 * 6 + 1  # the batch; two halves six times; the empty text


@given(bad=st.sets(st.integers(0, 29)), budget=st.sampled_from([64, 200, 2_000]))
@settings(max_examples=15, deadline=None)
def test_exactly_the_texts_at_fault_are_found(
    bad: set[int], budget: int, loud_encoder: Path
) -> None:
    encoder = load(loud_encoder, max_tokens=64, token_budget=budget)
    right = encoder.embed(TEXTS[:30], "none")
    watch(encoder, raise_on(encoder, BAD))
    texts = [BAD + text if i in bad else text for i, text in enumerate(TEXTS[:30])]
    found = encoder.embed_tokens(encoder.tokenizer(texts))
    assert set(found.faults) == bad
    rest = [i for i in range(30) if i not in bad]
    np.testing.assert_allclose(found.vectors[rest], right[rest], atol=1e-5)


def test_a_batch_that_raises_once_loses_nothing(loud_encoder: Path) -> None:
    encoder = load(loud_encoder)
    once = [RuntimeError("a hiccup")]

    def hiccup(ids: torch.Tensor) -> None:
        if once:
            raise once.pop()

    right = encoder.embed(TEXTS)
    watch(encoder, hiccup)
    np.testing.assert_allclose(encoder.embed(TEXTS), right, atol=1e-5)


def test_an_encoder_that_raises_on_everything_is_an_error_and_no_fault_of_the_texts(
    loud_encoder: Path,
) -> None:
    encoder = load(loud_encoder, token_budget=65_536)

    def broken(ids: torch.Tensor) -> None:
        raise RuntimeError("shapes cannot be\nmultiplied")

    saw = watch(encoder, broken)
    with pytest.raises(ModelError, match="raises on every text, even the empty one") as e:
        encoder.embed_tokens(encoder.tokenizer(TEXTS))
    assert "(RuntimeError: shapes cannot be multiplied)" in str(e.value)
    assert "\n" not in str(e.value)
    assert len(saw) <= 8  # down to one row, and the empty text


def test_texts_at_fault_that_are_all_there_is_do_not_put_the_blame_on_the_encoder(
    poisonable_encoder: Path,
) -> None:
    encoder = load(poisonable_encoder)
    for count in (1, 2, 40):
        texts = [POISON + text for text in TEXTS[:count]]
        assert len(encoder.embed_tokens(encoder.tokenizer(texts)).faults) == count
    assert np.isfinite(encoder.embed(TEXTS)).all()


def test_a_prefix_that_the_model_does_not_know_is_the_encoders_fault(
    poisonable_encoder: Path,
) -> None:
    encoder = load(poisonable_encoder, prefix=POISON)
    with pytest.raises(ModelError, match="raises on every text"):
        encoder.embed_tokens(encoder.tokenizer(TEXTS, POISON))


def test_embed_names_the_text_that_can_not_be_embedded(poisonable_encoder: Path) -> None:
    texts = [*TEXTS, POISON, "一"]
    with pytest.raises(ModelError, match=r"^text 60 of 62 can't be embedded \(ValueError: token"):
        load(poisonable_encoder).embed(texts)


def test_a_lost_device_is_not_mistaken_for_a_text_at_fault(loud_encoder: Path) -> None:
    encoder = load(loud_encoder)

    def lost(ids: torch.Tensor) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    saw = watch(encoder, lost)
    with pytest.raises(torch.AcceleratorError):
        encoder.embed_tokens(encoder.tokenizer(TEXTS))
    with pytest.raises(torch.AcceleratorError):
        encoder.reference(encoder.tokenizer(TEXTS))
    assert len(saw) == 2


def cuda_is_full() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def cpu_is_full() -> None:
    torch.empty(1 << 55, dtype=torch.uint8)


def numpy_is_full() -> None:
    np.empty(1 << 55, np.uint8)


@pytest.mark.parametrize("full", [cuda_is_full, cpu_is_full, numpy_is_full])
def test_out_of_memory_of_any_kind_halves_the_budget_and_is_no_fault(
    full: Callable[[], None], loud_encoder: Path
) -> None:
    encoder = load(loud_encoder, max_tokens=64, token_budget=1_024)
    bad = raise_on(encoder, BAD)

    def look(ids: torch.Tensor) -> None:
        if ids.numel() > 200:
            full()
        bad(ids)

    right = encoder.embed(TEXTS, "none")
    watch(encoder, look)
    found = encoder.embed_tokens(encoder.tokenizer([*TEXTS, BAD]))
    assert list(found.faults) == [len(TEXTS)]
    np.testing.assert_allclose(found.vectors[:-1], right, atol=1e-5)
    assert (encoder.budget.now, encoder.budget.splits) == (128, 3)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reference_vectors_are_those_of_plain_transformers_in_float32(
    dtype: Any, pooling: str, loud_encoder: Path, loud_cls_encoder: Path
) -> None:
    folder = loud_encoder if pooling == "mean" else loud_cls_encoder
    encoder = load(folder, dtype=dtype)
    texts = ["", *texts_of(1, 40, 300, 3_000)]
    vectors = encoder.reference(encoder.tokenizer(texts, PASSAGE))
    alone = plain(folder, [PASSAGE + text for text in texts], pooling, 1_024)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, alone, atol=1e-5)


def test_reference_vectors_of_an_xlm_roberta_are_those_of_plain_transformers(
    xlmr_encoder: Path,
) -> None:
    encoder = pack(load(xlmr_encoder, pooling="mean"))
    vectors = encoder.reference(encoder.tokenizer(TEXTS[:5]))
    np.testing.assert_allclose(vectors, plain(xlmr_encoder, TEXTS[:5], "mean", 512), atol=1e-5)


@pytest.mark.parametrize("wrong", ["neighbours", "positions", "nothing"])
def test_the_reference_tells_wrong_packing_from_right(wrong: str, loud_encoder: Path) -> None:
    encoder = pack(load(loud_encoder))
    if wrong == "neighbours":  # the attention of padded batches, under which packed rows mix
        encoder.forward.model.set_attn_implementation("sdpa")
    if wrong == "positions":  # that don't restart with each row
        encoder.forward.model.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "position_ids": None}), with_kwargs=True
        )
    rows = encoder.tokenizer(TEXTS[:16])
    same = cosines(encoder.embed_tokens(rows).vectors, encoder.reference(rows))
    assert (same.min() >= 0.999) == (wrong == "nothing")


def test_a_row_without_a_reference_is_nan_and_the_others_have_theirs(
    poisonable_encoder: Path,
) -> None:
    encoder = load(poisonable_encoder)
    vectors = encoder.reference(encoder.tokenizer([TEXTS[0], POISON, TEXTS[1]]))
    assert np.isnan(vectors[1]).all()
    np.testing.assert_allclose(vectors[[0, 2]], encoder.embed(TEXTS[:2], "none"), atol=1e-5)


def test_out_of_memory_is_not_taken_for_a_row_without_a_reference(loud_encoder: Path) -> None:
    encoder = load(loud_encoder)
    watch(encoder, lambda ids: cpu_is_full())
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        encoder.reference(encoder.tokenizer(TEXTS))


def test_a_float32_model_is_loaded_once_and_only_where_it_is_another(loud_encoder: Path) -> None:
    own, other = load(loud_encoder), load(loud_encoder, dtype="bfloat16")
    rows = own.tokenizer(TEXTS[:2])
    saw = watch(own), watch(other)
    for encoder in (own, other):
        np.testing.assert_array_equal(encoder.reference(rows), encoder.reference(rows))
    assert [len(one) for one in saw] == [4, 0]
    assert other.forward.model.dtype == torch.bfloat16
