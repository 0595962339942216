"""What does length-bucketed batching gain on this machine's CPU, and at equal vectors?

The same model, documents, threads and precision (float32), three ways, in turn, several rounds;
absolute times of a shared machine mean nothing, so the ratios of each round are taken, and their
median.

    python -m benchmarks.batching [--rounds 3] [--documents 96]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stella_ray import Encoder
from stella_ray.pipeline.cells import CorpusColumns
from stella_ray.pipeline.corpus import find_shards
from stella_ray.pipeline.shards import read_shard

CORPUS = Path(__file__).parents[1] / "examples/corpus"


def texts(count: int) -> list[str]:
    """Documents of the example corpus, of all lengths, in its order."""
    found: list[str] = []
    for number, shard in enumerate(find_shards([str(CORPUS)])):
        for block in read_shard(shard, number, CorpusColumns(), (), 1_000):
            found += block["text"].to_pylist()
    return found[:: max(1, len(found) // count)][:count]


def main() -> None:
    """Time the ways and print their ratios."""
    from sentence_transformers import SentenceTransformer

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=96)
    options = parser.parse_args()

    encoder = Encoder("multilingual-e5-small")
    peer = SentenceTransformer(encoder.spec.folder, device="cpu")
    documents = texts(options.documents)
    prefixed = [encoder.spec.passage_prefix + text for text in documents]
    tokens = int(encoder.tokenizer(documents, encoder.spec.passage_prefix).lengths.sum())

    def as_read() -> np.ndarray:
        rows = [prefixed[i : i + 32] for i in range(0, len(prefixed), 32)]
        return np.concatenate([peer.encode(part, batch_size=32) for part in rows])

    ways: dict[str, Callable[[], np.ndarray]] = {
        "stella-ray, Encoder.embed": lambda: encoder.embed(documents),
        "sentence-transformers, encode(all, batch_size=32)": lambda: peer.encode(prefixed),
        "sentence-transformers, 32 rows at a time, as read": as_read,
    }
    vectors = {name: way() for name, way in ways.items()}  # warms up, too
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)

    ours = next(iter(ways))
    print(f"{len(documents)} documents, {tokens:,} tokens, {options.rounds} rounds, float32")
    for name in ways:
        ratios = [a / b for a, b in zip(seconds[name], seconds[ours], strict=True)]
        same = float((vectors[name] * vectors[ours]).sum(1).min())
        print(
            f"{name:52} {statistics.median(ratios):5.2f} x our time"
            f" ({min(ratios):.2f} to {max(ratios):.2f}), least cosine to ours {same:.6f}"
        )


if __name__ == "__main__":
    main()
