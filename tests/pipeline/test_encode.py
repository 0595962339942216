"""Prepared blocks through the encoder's actor, without Ray: vectors, faults and samples."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from stella_ray.encode.encoder import Encoder
from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.encode.tokens import TextTokenizer
from stella_ray.errors import ModelMismatch
from stella_ray.pipeline.encode import ROWS_PER_SAMPLE, SAMPLES, EncodeBlocks
from stella_ray.rows import (
    FRESH,
    REFRESHED,
    REJECTED,
    REPEATED,
    UNCHANGED,
    embedded,
    prepared,
    row_keys,
)
from tests.conftest import make_encoder
from tests.encode.conftest import POISON, make_poisonable, texts_of

YEAR = pa.field("year", pa.int64())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder, whose model raises on POISON."""
    return make_poisonable(make_encoder(tmp_path_factory.mktemp("models") / "tiny"))


def actor(folder: Path, **how: Any) -> EncodeBlocks:
    settings = EncoderSettings(path=str(folder), device="cpu", max_tokens=64, **how)
    return EncodeBlocks(settings, find_encoder(settings).fingerprint["digest"], 1)


def block_of(folder: Path, texts: Sequence[str], fates: Sequence[str] | None = None) -> pa.Table:
    """A prepared block: each text a document of one row; without tokens unless it is fresh."""
    fates = fates or [FRESH] * len(texts)
    ids = [f"d{i}" for i in range(len(texts))]
    ragged = TextTokenizer(folder, 64)([t for t, f in zip(texts, fates, strict=True) if f == FRESH])
    tokens = iter(np.split(ragged.values, ragged.offsets[1:-1]))
    token_ids = [next(tokens).tolist() if fate == FRESH else [] for fate in fates]
    source = pa.table({"doc_id": ids, "text": list(texts)})
    schema = prepared([YEAR], True, pa.uint16())
    count = len(texts)
    columns = {
        "shard": [0] * count,
        "row": range(count),
        "doc_id": ids,
        "year": [2_000] * count,
        "text": list(texts),
        "row_key": row_keys(source, [], "digest"),
        "fate": list(fates),
        "reason": ["no id" if fate == REJECTED else None for fate in fates],
        "known_at": [-1 if fate == FRESH else 3 for fate in fates],
        "known_rows": [0] * count,
        "chunk": [0] * count,
        "chunks": [1] * count,
        "chunk_start": [0] * count,
        "chunk_end": [len(text) for text in texts],
        "token_ids": token_ids,
        "n_tokens": [len(row) for row in token_ids],
        "truncated": [False] * count,
        "stayed": [None] * count,
        "prepared_at": [time.time() - 2] * count,
        "shard_bytes": [1.0] * count,
        "read_seconds": [0.5] * count,
    }
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def vectors(block: pa.Table, rows: Sequence[int], column: str = "vector") -> np.ndarray:
    return np.array([block.column(column)[int(i)].as_py() for i in rows], np.float32)


def right(folder: Path, texts: Sequence[str]) -> np.ndarray:
    settings = EncoderSettings(path=str(folder), device="cpu", max_tokens=64)
    return Encoder(settings).embed(list(texts), "none")


def sampled(block: pa.Table) -> list[int]:
    return [i for i, row in enumerate(block.column("reference").to_pylist()) if row]


def test_only_fresh_rows_get_a_vector_and_the_rest_of_a_row_stays(folder: Path) -> None:
    texts = texts_of(5, 9, 30, 2, 8, 11)
    fates = [FRESH, UNCHANGED, FRESH, REFRESHED, REPEATED, REJECTED]
    block = block_of(folder, texts, fates)
    out = actor(folder)(block)
    assert out.schema == embedded(block.schema)
    assert [len(v) for v in out.column("vector").to_pylist()] == [32, 0, 32, 0, 0, 0]
    np.testing.assert_allclose(vectors(out, [0, 2]), right(folder, [texts[0], texts[2]]), atol=1e-5)
    same = [name for name in block.column_names if name != "token_ids"]
    assert out.select(same).equals(block.select(same))
    padded = out.column("padded_tokens").to_pylist()
    assert [i for i, tokens in enumerate(padded) if tokens] == [0, 2]


def test_a_window_s_account_stands_once_and_adds_up(folder: Path) -> None:
    texts = texts_of(5, 9, 30, 2, 8)
    texts[3] = POISON
    block = block_of(folder, texts, [UNCHANGED, FRESH, FRESH, FRESH, FRESH])
    before, encoder = time.time(), actor(folder)
    out = encoder(block)
    (told,) = out.column("window").drop_null().to_pylist()
    assert out.column("window").to_pylist()[1] == told
    lengths = block.column("n_tokens").to_pylist()
    assert (told["rows"], told["tokens"]) == (3, lengths[1] + lengths[2] + lengths[4])
    assert told["padded_tokens"] == sum(out.column("padded_tokens").to_pylist())
    assert told["seconds"] == pytest.approx(sum(out.column("encode_seconds").to_pylist()))
    assert before <= told["began"] <= told["ended"] <= time.time()
    assert 2 <= told["queued"] < 60
    assert (told["halvings"], told["matrix_seconds"]) == (0, 0.0)
    encoder.loading.result().budget.splits += 3
    assert encoder(block).column("window")[1].as_py()["halvings"] == 3


def test_a_window_without_a_fresh_row_does_not_wait_for_the_encoder(folder: Path) -> None:
    settings = EncoderSettings(path=str(folder.parent / "no such model"))
    block = block_of(folder, texts_of(5, 9), [UNCHANGED, REJECTED])
    out = EncodeBlocks(settings, "digest", 1)(block)
    assert out.schema == embedded(block.schema)
    assert out.column("vector").to_pylist() == out.column("reference").to_pylist() == [[], []]
    assert out.column("fate").to_pylist() == [UNCHANGED, REJECTED]


def test_another_encoder_than_the_drivers_is_refused(folder: Path) -> None:
    with pytest.raises(ModelMismatch, match="is another encoder"):
        EncodeBlocks(EncoderSettings(path=str(folder)), "0" * 32, 1)(block_of(folder, ["一"]))


def test_a_text_that_the_encoder_raises_on_is_rejected_and_its_batch_kept(folder: Path) -> None:
    texts = texts_of(*([10, 60, 25, 33, 1] * 8))
    texts[7], texts[31] = "一" + POISON, POISON
    fates = [UNCHANGED, *[FRESH] * 39]
    out = actor(folder)(block_of(folder, texts, fates))
    assert out.column("fate").to_pylist() == [
        UNCHANGED if i == 0 else REJECTED if i in (7, 31) else FRESH for i in range(40)
    ]
    reasons = out.column("reason").to_pylist()
    assert [i for i, reason in enumerate(reasons) if reason] == [7, 31]
    size = Encoder(str(folder)).forward.vocabulary
    assert reasons[7] == (
        f"the encoder failed on this text (ValueError: token id {size} is outside the model's"
        f" vocabulary of {size})"
    )
    assert [i for i, v in enumerate(out.column("vector").to_pylist()) if not v] == [0, 7, 31]
    kept = [i for i in range(1, 40) if i not in (7, 31)]
    np.testing.assert_allclose(
        vectors(out, kept), right(folder, [texts[i] for i in kept]), atol=1e-5
    )
    assert set(sampled(out)) <= set(kept)


def test_a_block_without_rows_stays_one(folder: Path) -> None:
    block = block_of(folder, ["一"]).slice(0, 0)
    assert actor(folder)(block).equals(embedded(block.schema).empty_table())


def test_a_window_of_nothing_but_texts_at_fault_is_rejected_whole(folder: Path) -> None:
    out = actor(folder)(block_of(folder, [POISON, POISON * 2, POISON]))
    assert out.column("fate").to_pylist() == [REJECTED] * 3
    assert out.column("vector").to_pylist() == out.column("reference").to_pylist() == [[]] * 3


def test_a_device_that_runs_out_of_memory_costs_no_row_and_recovers(folder: Path) -> None:
    encode = actor(folder, token_budget=256)
    encoder = encode.loading.result()

    def full(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].numel() > 200:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    hook = encoder.forward.model.register_forward_pre_hook(full, with_kwargs=True)
    texts = texts_of(*([10, 60, 25, 33, 1] * 10))
    out = encode(block_of(folder, texts))
    assert set(out.column("fate").to_pylist()) == {FRESH}
    np.testing.assert_allclose(vectors(out, range(50)), right(folder, texts), atol=1e-5)
    assert (encoder.budget.now, encoder.budget.splits) == (128, 1)
    hook.remove()
    block = block_of(folder, texts_of(*[62] * 300))
    for _ in range(6):
        encode(block)
    assert (encoder.budget.now, encoder.budget.splits) == (256, 1)


def test_a_sample_is_encoded_again_the_plain_way(folder: Path) -> None:
    block = block_of(folder, texts_of(*[5] * (2 * ROWS_PER_SAMPLE + 1)))
    out = actor(folder, dtype="bfloat16")(block)
    rows = sampled(out)
    assert len(rows) == 3
    both = (vectors(out, rows), vectors(out, rows, "reference"))
    assert (both[0] * both[1]).sum(1).min() >= 0.999
    assert not np.array_equal(*both)
    texts = [block.column("text")[i].as_py() for i in rows]
    np.testing.assert_allclose(both[1], right(folder, texts), atol=1e-5)
    assert sampled(actor(folder)(block)) == rows


def test_an_actor_samples_so_many_rows_and_no_more(folder: Path) -> None:
    encode = actor(folder)
    block = block_of(folder, texts_of(*[1 + i % 30 for i in range(20)]))
    counts = [len(sampled(encode(block))) for _ in range(SAMPLES + 3)]
    assert counts == [1] * SAMPLES + [0] * 3


def test_a_wrong_encoder_shows_in_the_sample(folder: Path) -> None:
    encode = actor(folder, dtype="bfloat16")
    model = encode.loading.result().forward.model
    with torch.no_grad():  # as a damaged checkpoint or a wrong kernel would
        model.encoder.layer[1].attention.self.query.weight.neg_()
        model.encoder.layer[1].output.dense.weight.neg_()
    out = encode(block_of(folder, texts_of(30, 40, 50)))
    rows = sampled(out)
    assert (vectors(out, rows) * vectors(out, rows, "reference")).sum(1).max() < 0.999


def test_a_reference_that_can_not_be_had_is_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_encoder(tmp_path / "gone")
    encode = actor(folder, dtype="bfloat16")
    encode.loading.result()
    (folder / "model.safetensors").unlink()
    block = block_of(folder, texts_of(5, 9))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            out = encode(block)
            assert [len(v) for v in out.column("vector").to_pylist()] == [32, 32]
            assert sampled(out) == []
    told = [r.getMessage() for r in caplog.records if "no vectors to check" in r.getMessage()]
    assert len(told) == 1
    assert "the weights can't be loaded" in told[0]
    assert "\n" not in told[0]
