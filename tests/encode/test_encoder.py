"""Texts to vectors: those of transformers one at a time, and of sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from stella_ray.encode.encoder import ROWS_PER_WINDOW, Encoder
from stella_ray.encode.faults import CALM_BATCHES, Budget
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import ModelError, SettingsError
from tests.encode.conftest import PASSAGE, QUERY, cosines, plain, texts_of

LENGTHS = [1, 2, 3, 5, 9, 17, 40, 100, 130, 300, 511, 700, 1_010, 1_017, 1_018, 1_019, 1_200, 3_000]
TEXTS = ["", " ", "abc ABC é", *texts_of(*LENGTHS)]
"""From no token to far above 1,024."""


@pytest.fixture(params=["mean", "cls"])
def pooling(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(pooling: str, loud_encoder: Path, loud_cls_encoder: Path) -> Path:
    return loud_encoder if pooling == "mean" else loud_cls_encoder


def test_vectors_are_those_of_plain_transformers_one_text_at_a_time(
    folder: Path, pooling: str
) -> None:
    vectors = Encoder(str(folder)).embed(TEXTS)
    alone = plain(folder, [PASSAGE + text for text in TEXTS], pooling, 1_024)
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(TEXTS), 32))
    assert cosines(vectors, alone).min() >= 0.9999
    np.testing.assert_allclose(vectors, alone, atol=1e-5)


@pytest.mark.parametrize("max_tokens", [8, 128])
def test_a_smaller_max_tokens_cuts_where_transformers_cuts(
    folder: Path, pooling: str, max_tokens: int
) -> None:
    encoder = Encoder(EncoderSettings(path=str(folder), max_tokens=max_tokens))
    alone = plain(folder, [PASSAGE + text for text in TEXTS], pooling, max_tokens)
    assert cosines(encoder.embed(TEXTS), alone).min() >= 0.9999


def test_vectors_are_those_of_sentence_transformers(folder: Path) -> None:
    other = SentenceTransformer(str(folder), device="cpu")
    for prompt in ("query", "passage"):
        theirs = other.encode(TEXTS, prompt_name=prompt, show_progress_bar=False)
        ours = Encoder(str(folder)).embed(TEXTS, prompt)
        assert cosines(ours, theirs).min() >= 0.9999


def test_an_xlm_roberta_gives_the_vectors_of_plain_transformers(xlmr_encoder: Path) -> None:
    encoder = Encoder(EncoderSettings(path=str(xlmr_encoder), pooling="mean"))
    alone = plain(xlmr_encoder, TEXTS, "mean", 512)
    assert cosines(encoder.embed(TEXTS, "none"), alone).min() >= 0.9999


@pytest.mark.parametrize("token_budget", [1_024, 1_500, 65_536])
def test_a_vector_depends_neither_on_its_neighbours_nor_on_order_nor_on_the_token_budget(
    folder: Path, token_budget: int
) -> None:
    encoder = Encoder(EncoderSettings(path=str(folder), token_budget=token_budget))
    right = np.concatenate([encoder.embed([text]) for text in TEXTS])
    rng = np.random.default_rng(0)
    for count in (2, 7, len(TEXTS)):
        rows = rng.permutation(len(TEXTS))[:count]
        vectors = encoder.embed([TEXTS[i] for i in rows])
        np.testing.assert_allclose(vectors, right[rows], atol=1e-5)


def test_equal_texts_are_encoded_once_and_all_get_the_vector(loud_encoder: Path) -> None:
    encoder = Encoder(str(loud_encoder))
    a, b, c = texts_of(20, 30, 40)
    found = encoder.embed_tokens(encoder.tokenizer([a, b, a, c, b, a]))
    np.testing.assert_array_equal(found.vectors[[0, 0, 1]], found.vectors[[2, 5, 4]])
    assert (found.padded_tokens > 0).tolist() == [True, True, False, True, False, False]
    assert (found.seconds > 0).tolist() == [True, True, False, True, False, False]
    np.testing.assert_allclose(found.vectors[:2], encoder.embed([a, b], "none"), atol=1e-5)


def test_the_padding_of_a_batch_is_counted_row_by_row(loud_encoder: Path) -> None:
    encoder = Encoder(EncoderSettings(path=str(loud_encoder), max_tokens=64, token_budget=64))
    found = encoder.embed_tokens(encoder.tokenizer(texts_of(30, 8, 3, 60)))
    # 62 tokens alone; 32 and 10 as a batch 32 wide; 5 alone.
    assert found.padded_tokens.tolist() == [32, 32, 5, 62]


def test_more_texts_than_a_window_keep_their_order(loud_encoder: Path) -> None:
    encoder = Encoder(EncoderSettings(path=str(loud_encoder), max_tokens=8))
    texts = [f"{i} {i % 7}" for i in range(ROWS_PER_WINDOW + 50)]
    vectors = encoder.embed(texts, "none")
    some = [0, 1, ROWS_PER_WINDOW - 1, ROWS_PER_WINDOW, len(texts) - 1]
    np.testing.assert_allclose(
        vectors[some], encoder.embed([texts[i] for i in some], "none"), atol=1e-5
    )


def test_no_texts_give_no_vectors(loud_encoder: Path) -> None:
    encoder = Encoder(str(loud_encoder))
    vectors = encoder.embed([])
    assert (vectors.shape, vectors.dtype) == ((0, 32), np.float32)
    assert encoder.embed_tokens(encoder.tokenizer([])).vectors.shape == (0, 32)


def test_a_single_string_is_refused(loud_encoder: Path) -> None:
    with pytest.raises(SettingsError, match="put it in a list"):
        Encoder(str(loud_encoder)).embed("一段话")


def test_a_prefix_is_the_models_own_or_none_or_the_text_given(loud_encoder: Path) -> None:
    encoder = Encoder(str(loud_encoder))
    named = {"passage": PASSAGE, "query": QUERY, "none": "", "": "", "丈丂: ": "丈丂: "}
    vectors = {prefix: encoder.embed(["一丁七"], prefix) for prefix in named}
    for prefix, text in named.items():
        alone = plain(loud_encoder, [text + "一丁七"], "mean", 1_024)
        assert cosines(vectors[prefix], alone).min() > 0.999999
    np.testing.assert_array_equal(encoder.embed(["一丁七"]), vectors["passage"])
    assert cosines(vectors["query"], vectors["passage"]).max() < 0.999


def test_bfloat16_on_a_cpu_stays_within_a_thousandth(folder: Path, pooling: str) -> None:
    encoder = Encoder(EncoderSettings(path=str(folder), dtype="bfloat16", device="cpu"))
    alone = plain(folder, [PASSAGE + text for text in TEXTS], pooling, 1_024)
    vectors = encoder.embed(TEXTS)
    assert vectors.dtype == np.float32
    assert cosines(vectors, alone).min() >= 0.999


class SmallDevice:
    """Stands before a model and runs out of memory above so many tokens, as a device would."""

    def __init__(self, model: Any, most_tokens: int) -> None:
        self.model, self.config, self.most_tokens = model, model.config, most_tokens
        self.refused = 0

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        if input_ids.numel() > self.most_tokens:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return self.model(input_ids=input_ids, attention_mask=attention_mask)


def test_out_of_memory_halves_the_budget_and_gives_the_same_vectors(loud_encoder: Path) -> None:
    how = EncoderSettings(path=str(loud_encoder), max_tokens=64, token_budget=1_024)
    encoder, small = Encoder(how), Encoder(how)
    device = small.forward.model = SmallDevice(small.forward.model, 200)
    texts = texts_of(*([10, 60, 25, 33, 1] * 30))
    np.testing.assert_allclose(small.embed(texts), encoder.embed(texts), atol=1e-5)
    assert device.refused == small.budget.splits == 3
    assert small.budget.now == 128


def test_a_row_that_does_not_fit_the_device_is_a_model_error(loud_encoder: Path) -> None:
    encoder = Encoder(EncoderSettings(path=str(loud_encoder), max_tokens=64, token_budget=1_024))
    encoder.forward.model = SmallDevice(encoder.forward.model, 60)
    with pytest.raises(ModelError, match=r"out of device memory with 1 row.* of up to 64 tokens"):
        encoder.embed(texts_of(100, 3))
    assert encoder.embed(texts_of(10)).shape == (1, 32)


def test_a_device_with_room_again_gets_its_budget_back(loud_encoder: Path) -> None:
    encoder = Encoder(EncoderSettings(path=str(loud_encoder), max_tokens=8, token_budget=64))
    device = encoder.forward.model = SmallDevice(encoder.forward.model, 32)
    texts = [f"{i}" for i in range(8 * CALM_BATCHES)]
    encoder.embed(texts)
    assert 32 <= encoder.budget.now < 40
    device.most_tokens = 64
    for _ in range(12):
        encoder.embed(texts)
    assert encoder.budget.now == 64


@given(st.integers(8, 64), st.integers(0, 5_000), st.lists(st.booleans(), max_size=40))
@settings(max_examples=60, deadline=None)
def test_a_budget_stays_between_one_row_and_its_most_and_recovers_slowly(
    least: int, more: int, fitted: list[bool]
) -> None:
    budget = Budget(most=least + more, least=least)
    assert budget.now == budget.most
    for well in fitted:
        before = budget.now
        if not well:
            assert budget.halve() == (before > least)
            assert budget.now == max(least, min(before, before // 2))
            continue
        for _ in range(CALM_BATCHES):
            budget.went_well()
        assert before <= budget.now <= max(before * 1.1, before + 1)
        assert before < budget.now <= budget.most or budget.now == before == budget.most
    for _ in range(CALM_BATCHES * 100):
        budget.went_well()
    assert budget.now == budget.most


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"device": "tpu9"}, "device 'tpu9' isn't one of torch's; expected auto, cpu or cuda"),
        ({"token_budget": 1_000}, "token_budget 1000 can't hold a row of max_tokens 1024"),
        ({"token_budget": 99, "max_tokens": 100}, "token_budget 99 .* max_tokens 100"),
        ({"max_tokens": 7}, "max_tokens 7 is too small; expected 8 or more"),
        ({"token_budget": -1}, "token_budget -1 is negative"),
    ],
)
def test_a_setting_that_cannot_hold_is_refused(
    loud_encoder: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        Encoder(EncoderSettings(path=str(loud_encoder), **wrong))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_refused(loud_encoder: Path) -> None:
    with pytest.raises(SettingsError, match="no CUDA device here; expected cpu or auto"):
        Encoder(EncoderSettings(path=str(loud_encoder), device="cuda"))
