"""What must not get slower without notice: ratios and counts, so that the machine doesn't matter.

Each bound stands with what was measured when it was written. Of two ways that are timed against
each other, the best of several rounds in turn counts: other work on the machine only adds time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer

from stella_ray.encode.batching import batches
from stella_ray.encode.encoder import ROWS_PER_WINDOW, Encoder
from stella_ray.encode.forward import CPU_TOKEN_BUDGET, CUDA_TOKEN_BUDGET
from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.encode.tokens import TextTokenizer
from stella_ray.pipeline.judge import Preparation
from stella_ray.pipeline.prepare import prepare_block
from stella_ray.rows import KEY_BYTES, SUMMARY, key_array, row_keys, source
from stella_ray.table.keys import KnownKeys
from tests.conftest import HAN, make_encoder

BOUNDS = {  # name: (at most, measured)
    "tokens worked on / tokens, padded, CPU budget": (1.01, 1.007),
    "tokens worked on / tokens, padded, CUDA budget": (1.18, 1.172),
    "batches / fewest possible, packed, CUDA budget": (1.05, 1.0),
    "tokens worked on / tokens, Encoder, window of 512": (1.06, 1.042),
    "seconds of unchanged rows / of hashing them": (4.0, 2.1),
    "seconds of Encoder.embed / of the bare model": (1.15, 1.05),
    "seconds of TextTokenizer / of the bare tokenizer, Chinese": (0.25, 0.08),
    "seconds of TextTokenizer / of the bare tokenizer, English": (1 / 0.9, 1.02),
}


def check(name: str, value: float) -> None:
    most, measured = BOUNDS[name]
    assert value <= most, f"{name}: {value:.3f}, at most {most:.3f}, was {measured}"


def times_as_long(way: Callable[[], Any], yardstick: Callable[[], Any], rounds: int) -> float:
    """Best CPU time of `way`, all threads, over the best of `yardstick`, in turn.

    Not seconds on the wall: beside another test, what uses two threads takes twice as long, and
    what uses one doesn't.
    """
    took: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        for run, seconds in zip((way, yardstick), took, strict=True):
            began = time.process_time()
            run()
            seconds.append(time.process_time() - began)
    return min(took[0]) / min(took[1])


def lengths_of(rows: int, longest: int, mean: float = 4.5) -> np.ndarray:
    """Lengths as a corpus of web text has them: most short, a few cut at the longest."""
    drawn = np.random.default_rng(0).lognormal(mean=mean, sigma=1.1, size=rows)
    return np.clip(drawn.astype(np.int64), 4, longest)


def texts_of(lengths: np.ndarray) -> list[str]:
    rng = np.random.default_rng(1)
    return ["".join(rng.choice(HAN, length)) for length in lengths.tolist()]


@pytest.fixture(scope="module")
def small_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny tokenizer on a BERT large enough that its matrices are the work."""
    from transformers import BertConfig, BertModel

    folder = make_encoder(tmp_path_factory.mktemp("models") / "small", positions=512, layers=3)
    config = BertConfig.from_pretrained(folder)
    config.hidden_size, config.intermediate_size, config.num_attention_heads = 384, 1_536, 6
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("device", ["CPU", "CUDA"])
def test_little_of_a_padded_batch_is_padding(device: str) -> None:
    lengths = lengths_of(ROWS_PER_WINDOW, 1_024)
    budget = {"CPU": CPU_TOKEN_BUDGET, "CUDA": CUDA_TOKEN_BUDGET}[device]
    cost = sum(lengths[b].max() * len(b) for b in batches(lengths, budget, packed=False))
    check(f"tokens worked on / tokens, padded, {device} budget", cost / lengths.sum())


def test_packed_batches_are_as_few_as_can_be() -> None:
    lengths = lengths_of(ROWS_PER_WINDOW, 1_024)
    cut = list(batches(lengths, CUDA_TOKEN_BUDGET, packed=True))
    fewest = -(-lengths.sum() // CUDA_TOKEN_BUDGET)
    check("batches / fewest possible, packed, CUDA budget", len(cut) / fewest)


def test_the_encoder_pads_no_more_than_its_cutter(tiny_encoder: Path) -> None:
    encoder = Encoder(EncoderSettings(path=str(tiny_encoder), device="cpu", max_tokens=512))
    rows = encoder.tokenizer(texts_of(lengths_of(512, 500)))
    worked_on = encoder.embed_tokens(rows).padded_tokens.sum()
    name = "tokens worked on / tokens, Encoder, window of 512"
    check(name, worked_on / rows.lengths.sum())


def test_an_unchanged_row_costs_little_more_than_hashing_it(tiny_encoder: Path) -> None:
    spec = find_encoder(EncoderSettings(path=str(tiny_encoder)))
    how = Preparation(kept=(), store_text=True, spec=spec, digest="digest")
    texts = [text.encode() for text in texts_of(lengths_of(8_192, 5_000, mean=6.0))]
    count = len(texts)
    columns: dict[str, Any] = {
        "doc_id": [f"document-{i}" for i in range(count)],
        "text": [text.decode() for text in texts],
        "row": range(count),
    }
    schema = source([])
    blank = {field.name: pa.nulls(count, field.type) for field in schema}
    zeros = {name: np.zeros(count) for name in ("shard", "shard_bytes", "read_seconds")}
    block = pa.table({**blank, **zeros, **columns}).cast(schema)
    keys = np.sort(key_array(pa.table({"row_key": row_keys(block, (), "digest")})))
    known = KnownKeys(1, keys.astype(f"S{KEY_BYTES}"), np.arange(count, dtype=np.uint64))

    def skip() -> list[pa.Table]:
        return list(prepare_block(block, how, known, count))

    assert [table["fate"].to_pylist() for table in skip()] == [[SUMMARY]]

    def hashing() -> None:
        for text in texts:
            hashlib.blake2b(text, digest_size=KEY_BYTES).digest()

    found = times_as_long(skip, hashing, 7)
    check("seconds of unchanged rows / of hashing them", found)


def test_embedding_costs_little_more_than_the_bare_model(small_encoder: Path) -> None:
    torch.set_num_threads(1)  # a second one would wait for whatever else runs here
    encoder = Encoder(EncoderSettings(path=str(small_encoder), device="cpu", max_tokens=512))
    texts = texts_of(lengths_of(40, 500))
    rows = encoder.tokenizer(texts, encoder.spec.passage_prefix)
    inputs = []
    for batch in batches(rows.lengths, CPU_TOKEN_BUDGET, packed=False):
        lengths = torch.from_numpy(rows.lengths[batch])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        inputs.append({"input_ids": mask * 7, "attention_mask": mask})

    @torch.inference_mode()
    def bare() -> None:
        for given in inputs:
            encoder.forward.model(**given)

    found = times_as_long(lambda: encoder.embed(texts), bare, 5)
    check("seconds of Encoder.embed / of the bare model", found)


@pytest.mark.parametrize("language", ["Chinese", "English"])
def test_tokenising_costs_little_more_than_the_bare_tokenizer(
    language: str, tiny_encoder: Path
) -> None:
    own = TextTokenizer(tiny_encoder, 512)
    bare = Tokenizer.from_file(str(tiny_encoder / "tokenizer.json"))
    bare.enable_truncation(512)
    texts = texts_of(lengths_of(500, 1_024))
    if language == "English":
        texts = [" ".join(f"{ord(c):x}" for c in text[::4]) for text in texts]
    assert own(texts).lengths.sum() == sum(len(e.ids) for e in bare.encode_batch_fast(texts))

    def plain() -> list[list[int]]:
        return [encoding.ids for encoding in bare.encode_batch_fast(texts)]

    check(
        f"seconds of TextTokenizer / of the bare tokenizer, {language}",
        times_as_long(lambda: own(texts), plain, 15),
    )
