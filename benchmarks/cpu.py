"""How fast is it on this machine's CPU, against sentence-transformers and the usual pipeline?

The same model, documents and threads, in turn, several rounds.  Absolute times of a shared machine
mean nothing, so the ratios of each round are taken, and their median.  Documents are the example
corpus's, in their own mix of lengths; a text that is needed a second time begins elsewhere.

    python -m benchmarks.cpu [--rounds 3] [--documents 48] [--job_documents 256] [--plot PLOT.svg]

1. `Encoder.embed` against sentence-transformers, which is given the whole list, sorts it by length
   itself, and has its best batch size of 1 to 64 (the two best of a first sweep run in all rounds).
2. jobs/embed.py against benchmarks/usual.py and against `Encoder.embed` of the same texts. What a
   run over four documents takes counts as start-up; ratios are given with it and without.
3. With --plot, instead: speed against the length of documents, drawn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.plot import draw
from stella_ray import Encoder
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import SettingsError
from stella_ray.pipeline.cells import CorpusColumns
from stella_ray.pipeline.corpus import find_shards
from stella_ray.pipeline.shards import read_shard

MODEL = "multilingual-e5-small"
REPOSITORY = Path(__file__).parents[1]
PEER_BATCHES = (1, 2, 4, 8, 16, 32, 64)
PEER_DEFAULT = 32
LENGTHS = (16, 32, 64, 128, 256, 512)
STARTUP_DOCUMENTS = 4

Way = Callable[[], object]


def texts(count: int) -> list[str]:
    """Documents of the example corpus, evenly taken; beyond its end each begins further in."""
    found: list[str] = []
    for number, shard in enumerate(find_shards([str(REPOSITORY / "examples/corpus")])):
        for block in read_shard(shard, number, CorpusColumns(), (), 1_000):
            found += block["text"].to_pylist()
    if count <= len(found):
        return found[:: len(found) // count][:count]
    turns = ((text, 37 * turn) for turn in range(-(-count // len(found))) for text in found)
    return [text[at % len(text) :] + text[: at % len(text)] for text, at in turns][:count]


def seconds(way: Way) -> float:
    """How long it takes."""
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


def in_turn(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, one after the other in each round."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            took[name].append(seconds(way))
    return took


def ratio(slower: list[float], faster: list[float]) -> str:
    """Median and range of the rounds' ratios."""
    each = [a / b for a, b in zip(slower, faster, strict=True)]
    return f"{statistics.median(each):5.2f} ({min(each):.2f} to {max(each):.2f})"


def encoders() -> dict[str, Encoder]:
    """Ours, in each kind of numbers that this CPU is good for."""
    found = {"float32": Encoder(EncoderSettings(path=MODEL, device="cpu"))}
    try:
        found["int8"] = Encoder(EncoderSettings(path=MODEL, device="cpu", dtype="int8"))
    except SettingsError as error:
        print(f"without int8: {error}")
    return found


def against_peer(documents: list[str], rounds: int) -> None:
    """Encoder.embed against sentence-transformers."""
    ours = encoders()
    spec = ours["float32"].spec
    peer = SentenceTransformer(spec.folder, device="cpu")
    prefixed = [spec.passage_prefix + text for text in documents]
    tokens = ours["float32"].tokenizer(documents, spec.passage_prefix).lengths
    want = peer.encode(prefixed, batch_size=8)
    for dtype, encoder in ours.items():
        cosine = (encoder.embed(documents) * want).sum(1)
        print(
            f"{dtype}: cosine to the peer's at least {cosine.min():.6f}, mean {cosine.mean():.6f}"
        )
    sweep = {
        size: seconds(partial(peer.encode, prefixed, batch_size=size)) for size in PEER_BATCHES
    }
    best = sorted(sweep, key=sweep.__getitem__)[:2]
    shares = ", ".join(f"{size}: {sweep[size] / min(sweep.values()):.2f}" for size in sweep)
    print(f"sentence-transformers, time by batch size, best = 1: {shares}")
    ways: dict[str, Way] = {
        f"ours, {dtype}": partial(encoder.embed, documents) for dtype, encoder in ours.items()
    }
    for size in sorted({*best, PEER_DEFAULT}):
        ways[f"peer, {size}"] = partial(peer.encode, prefixed, batch_size=size)
    took = in_turn(ways, rounds)
    size = min(best, key=lambda size: statistics.median(took[f"peer, {size}"]))
    print(f"{len(documents)} documents, {tokens.sum():,} tokens, median {np.median(tokens):.0f}")
    for dtype in ours:
        mine = took[f"ours, {dtype}"]
        print(f"| Encoder.embed, {dtype} | {ratio(took[f'peer, {size}'], mine)} x the speed of"
              f" sentence-transformers at its best batch size, {size} |")  # fmt: skip
        print(f"| Encoder.embed, {dtype} | {ratio(took[f'peer, {PEER_DEFAULT}'], mine)} x its speed"
              f" at its default, {PEER_DEFAULT} |")  # fmt: skip


def run_quietly(*command: str) -> None:
    """Run one of our Python programs in the repository; what it printed is shown if it fails."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "local"}
    done = subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{command[:2]} failed:\n{done.stdout[-3000:]}")


def against_pipeline(documents: list[str], rounds: int) -> None:
    """The whole job against the usual pipeline, and against Encoder.embed alone."""
    encoder = Encoder(EncoderSettings(path=MODEL, device="cpu"))
    spec = encoder.spec
    with tempfile.TemporaryDirectory() as scratch:
        place, runs = Path(scratch), iter(range(1_000))

        def write(rows: list[str], name: str) -> str:
            columns = {"id": [str(i) for i in range(len(rows))], "text": rows}
            pq.write_table(pa.table(columns), place / name)
            return str(place / name)

        whole = write(documents, "corpus.parquet")
        few = write(documents[:STARTUP_DOCUMENTS], "few.parquet")

        def job(corpus: str) -> None:
            table = f"{place}/{next(runs)}/docs"
            run_quietly(
                "jobs/embed.py", "--corpus", corpus, "--table", table, "--encoder.path", MODEL
            )

        def usual(corpus: str) -> None:
            run_quietly("-m", "benchmarks.usual", spec.folder, spec.passage_prefix, corpus,
                        f"{place}/{next(runs)}")  # fmt: skip

        encoder.embed(documents[:16])
        took = in_turn(
            {
                "embed": lambda: encoder.embed(documents),
                "job": lambda: job(whole),
                "usual": lambda: usual(whole),
                "job's start": lambda: job(few),
                "usual's start": lambda: usual(few),
                "embed few": lambda: encoder.embed(documents[:STARTUP_DOCUMENTS]),
            },
            rounds,
        )

    def without_start(name: str, start: str) -> list[float]:
        return [a - b for a, b in zip(took[name], took[start], strict=True)]

    lone = without_start("embed", "embed few")
    mine, theirs = without_start("job", "job's start"), without_start("usual", "usual's start")
    print(f"{len(documents)} documents, {rounds} rounds, float32")
    print(
        f"| jobs/embed.py | {ratio(took['usual'], took['job'])} x the speed of the usual pipeline |"
    )
    print(f"| the same without start-up | {ratio(theirs, mine)} x |")
    print(f"| jobs/embed.py | {ratio(took['embed'], took['job'])} of Encoder.embed's speed |")
    print(f"| the same without start-up | {ratio(lone, mine)} |")


def by_length(rounds: int, place: Path) -> None:
    """Speed against length: documents of one length each time, so that none gains by sorting.

    Best of the rounds, and for sentence-transformers of batch sizes 4, 8 and 32, too.
    """
    ours = encoders()
    spec = ours["float32"].spec
    peer = SentenceTransformer(spec.folder, device="cpu")
    long = "".join(texts(300))
    took: dict[str, dict[int, list[float]]] = {}
    for _ in range(rounds):
        for length in LENGTHS:
            count = max(8, 2_048 // length)
            rows = [long[i * 700 : i * 700 + length * 4] for i in range(count)]
            prefixed = [spec.passage_prefix + row for row in rows]
            peer.max_seq_length = length
            ways: dict[str, Way] = {}
            for dtype, encoder in ours.items():
                encoder.tokenizer.max_tokens = length
                ways[f"stella-ray, {dtype}"] = partial(encoder.embed, rows)
            for size in (4, 8, 32):
                ways[f"{size}"] = partial(peer.encode, prefixed, batch_size=size)
            for name, way in ways.items():
                each = seconds(way) / (count * length)
                took.setdefault(name, {}).setdefault(length, []).append(each)
    best = {name: [1 / min(each[length]) for length in LENGTHS] for name, each in took.items()}
    peers = [best.pop(f"{size}") for size in (4, 8, 32)]
    best["sentence-transformers, float32"] = [
        max(at_length) for at_length in zip(*peers, strict=True)
    ]
    one = best["sentence-transformers, float32"][LENGTHS.index(128)]
    lines = {name: [speed / one for speed in line] for name, line in best.items()}
    for name, line in lines.items():
        print(f"{name:32}", *(f"{speed:5.2f}" for speed in line))
    draw(place, list(LENGTHS), lines)


def main() -> None:
    """Time the ways and print their ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=48)
    parser.add_argument("--job_documents", type=int, default=256, help="0: no pipelines")
    parser.add_argument("--job_rounds", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="an .svg to draw, instead of the table")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {MODEL}")
    if options.plot:
        by_length(options.rounds, options.plot)
        return
    if options.documents:
        against_peer(texts(options.documents), options.rounds)
    if options.job_documents:
        against_pipeline(texts(options.job_documents), options.job_rounds)


if __name__ == "__main__":
    main()
