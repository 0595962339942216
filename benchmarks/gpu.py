"""How near the GPU's limit does the encoder run, and where are transformers and its peers?

Weights are random (speed doesn't hang on them), of stella-base's and stella-large's shapes; the
documents are slices of examples/corpus of lognormal length, 283 tokens on average. The limit is the
GPU's rate on one large bfloat16 product, measured here.

    python -m benchmarks.gpu [--plot docs/gpu.svg] [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from stella_ray import Encoder
from stella_ray.encode.models import EncoderSettings
from stella_ray.encode.tokens import Ragged

CORPUS = Path(__file__).parents[1] / "examples/corpus"
SHAPES = {"stella-base": (12, 768), "stella-large": (24, 1024)}
ROWS_PER_WINDOW = 8_192
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def corpus_text() -> str:
    """The texts of the example corpus' parquet shard in one."""
    return "".join(pq.read_table(CORPUS / "part-0.parquet").column("text").to_pylist())


def documents(count: int, seed: int = 0) -> list[str]:
    """Slices of the corpus, lognormal in length: median 208 characters, sigma 0.9, 8 to 1,022."""
    text, rng = corpus_text(), np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(np.log(208), 0.9, count)), 8, 1_022).astype(int)
    return slices(text, lengths, rng)


def slices(text: str, lengths: np.ndarray, rng: np.random.Generator) -> list[str]:
    """A slice of the text of each length, from anywhere."""
    starts = rng.integers(0, len(text) - lengths.max(), len(lengths))
    return [text[a : a + n] for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)]


def make_model(folder: Path, shape: str) -> Path:
    """A sentence-transformers folder of random weights: BERT of this shape, 21,128 words."""
    from transformers import BertConfig, BertModel, BertTokenizer

    layers, dim = SHAPES[shape]
    words = SPECIAL + sorted(set(corpus_text()) - set(" \n\t\u3000"))
    words += [f"[unused{i}]" for i in range(21_128 - len(words))]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=21_128, hidden_size=dim, num_hidden_layers=layers, num_attention_heads=dim // 64,
        intermediate_size=4 * dim, max_position_embeddings=1_024, initializer_range=0.05,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab={w: i for i, w in enumerate(words)}).save_pretrained(folder)
    pooling = {"word_embedding_dimension": dim, "pooling_mode_mean_tokens": True}
    modules = ["Transformer", "Pooling", "Normalize"]
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 1_024}))
    (folder / "modules.json").write_text(json.dumps([
        {"idx": i, "name": str(i), "path": "" if not i else f"{i}_{kind}",
         "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(modules)
    ]))  # fmt: skip
    return folder


def dense_rate() -> float:
    """FLOP/s of one bfloat16 product of 8,192 x 8,192 x 8,192 random numbers."""
    a, b = torch.randn(2, 8_192, 8_192, device="cuda", dtype=torch.bfloat16)
    times = []
    for _ in range(20):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        a @ b
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) / 1e3)
    return 2 * 8_192**3 / statistics.median(times)


def flops(lengths: np.ndarray, layers: int, dim: int) -> float:
    """Of the products over rows of these lengths: 24 D² a token and 4 D n² a row, a layer."""
    tokens, squares = float(lengths.sum()), float((lengths.astype(float) ** 2).sum())
    return layers * (24 * dim * dim * tokens + 4 * dim * squares)


def windows(rows: Ragged) -> Iterator[Ragged]:
    """Windows of rows, as the pipeline's."""
    for a in range(0, len(rows.lengths), ROWS_PER_WINDOW):
        offsets = rows.offsets[a : a + ROWS_PER_WINDOW + 1]
        flags = np.zeros(len(offsets) - 1, bool)
        yield Ragged(rows.values[offsets[0] : offsets[-1]], offsets - offsets[0], flags)


def timed(way: Callable[[], Any], rounds: int) -> float:
    """Seconds of the median round, after one that doesn't count."""
    way()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        way()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


class Table:
    """Lines of one shape: Mtok/s, share of the limit, least cosine to float32."""

    def __init__(self, shape: str, folder: Path, count: int, rate: float) -> None:
        self.shape, self.folder, self.rate = shape, folder, rate
        self.texts = documents(count)
        self.plain = Encoder(
            EncoderSettings(path=str(folder), dtype="float32", prefix="none", pooling="mean")
        )
        self.rows = self.plain.tokenizer(self.texts)
        self.sample = self.plain.reference(next(windows(self.plain.tokenizer(self.texts[:256]))))
        print(
            f"\n{shape}: {count:,} documents, {self.rows.lengths.mean():.0f} tokens on average;"
            f" the limit is {self.limit / 1e6:.2f} Mtok/s\n"
            "| way | Mtok/s | share of the limit | least cosine to float32 |\n|---|---|---|---|"
        )

    @property
    def limit(self) -> float:
        """Tokens a second, if every FLOP ran at the rate of a large product."""
        lengths = self.rows.lengths
        return float(self.rate * lengths.sum() / flops(lengths, *SHAPES[self.shape]))

    def line(self, name: str, count: int, seconds: float, sample: np.ndarray) -> float:
        """Print one; returns tokens a second."""
        speed = float(self.rows.lengths[:count].sum() / seconds)
        # of the very documents that it encoded
        share = flops(self.rows.lengths[:count], *SHAPES[self.shape]) / seconds / self.rate
        least = float((sample * self.sample).sum(1).min())
        print(f"| {name} | {speed / 1e6:.3f} | {share:.1%} | {least:.5f} |", flush=True)
        return speed

    def ours(self, rounds: int = 3, **how: Any) -> float:
        """A line of `Encoder.embed_tokens`, two windows in flight as in the pipeline's actors."""
        encoder = Encoder(EncoderSettings(path=str(self.folder), pooling="mean", **how))
        parts = list(windows(self.rows))
        busy: list[float] = []

        def go() -> None:
            with ThreadPoolExecutor(2) as pool:
                found = pool.map(encoder.embed_tokens, parts)
                busy.append(sum(float(one.seconds.sum()) for one in found))

        seconds = timed(go, rounds)
        name = type(encoder.forward).__name__.removesuffix("Forward").lower()
        dtype = str(encoder.forward.dtype).removeprefix("torch.")
        more = f", {encoder.budget.most:,} tokens a batch, GPU busy {busy[-1] / seconds:.0%}"
        sample = encoder.embed(self.texts[:256], "none")
        return self.line(f"stella-ray {name} {dtype}{more}", len(self.texts), seconds, sample)

    def sentence_transformers(self, dtype: str, batch_size: int, count: int) -> float:
        """A line of the peer, over the first `count` documents; it sorts them itself."""
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(
            str(self.folder), device="cuda", model_kwargs={"dtype": getattr(torch, dtype)}
        )
        texts = self.texts[:count]

        def go() -> Any:
            return model.encode(texts, batch_size=batch_size, normalize_embeddings=True)

        seconds = timed(go, 1)
        sample = model.encode(self.texts[:256], normalize_embeddings=True).astype(np.float32)
        name = f"sentence-transformers {dtype}, batch_size {batch_size}, tokenising included"
        return self.line(name, count, seconds, sample)


def by_length(folder: Path, plot: Path | None, shape: str, rate: float) -> None:
    """Throughput against the documents' length, ours and sentence-transformers'."""
    from sentence_transformers import SentenceTransformer

    ours = Encoder(EncoderSettings(path=str(folder), pooling="mean"))
    theirs = SentenceTransformer(str(folder), device="cuda", model_kwargs={"dtype": torch.bfloat16})
    rng, text = np.random.default_rng(0), corpus_text()
    found = []
    for tokens in (32, 64, 128, 256, 512, 1_024):
        texts = slices(text, np.full(2_000_000 // tokens, tokens - 2), rng)
        rows = ours.tokenizer(texts)
        seconds = timed(lambda rows=rows: [ours.embed_tokens(one) for one in windows(rows)], 3)
        few = texts[: 400_000 // tokens]
        peer = timed(lambda few=few: theirs.encode(few, batch_size=256), 1)
        limit = rate * rows.lengths.sum() / flops(rows.lengths, *SHAPES[shape])
        speed, theirs_speed = rows.lengths.sum() / seconds, rows.lengths[: len(few)].sum() / peer
        found.append({"tokens": tokens, "limit": limit / 1e6, "stella-ray": speed / 1e6})
        found[-1]["sentence-transformers"] = theirs_speed / 1e6
        print(" | ".join(f"{k} {v:.3f}" for k, v in found[-1].items()), flush=True)
    if plot:
        plot.with_suffix(".json").write_text(json.dumps(found))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--plot", type=Path, help="where to put the throughput by length")
    parser.add_argument("--quick", action="store_true", help="a third of the documents")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; expected one NVIDIA GPU of Ampere or later")
    rate = dense_rate()
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}: {rate / 1e12:.0f} TFLOP/s in bfloat16")
    part = 3 if options.quick else 1
    with tempfile.TemporaryDirectory() as scratch:
        for shape, count in (("stella-base", 60_000), ("stella-large", 24_000)):
            folder = make_model(Path(scratch) / shape, shape)
            table = Table(shape, folder, count // part, rate)
            table.ours()
            table.ours(dtype="float16")
            table.ours(implementation="packed")
            table.ours(implementation="padded", rounds=1)
            for batch_size in (64, 256):
                table.sentence_transformers("bfloat16", batch_size, count // 6)
            table.sentence_transformers("float32", 32, count // 20)
            if shape == "stella-base":
                print(f"\n{shape} by length of the documents, Mtok/s")
                by_length(folder, options.plot, shape, rate)


if __name__ == "__main__":
    main()
