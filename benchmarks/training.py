"""A training step against sentence-transformers' CachedMultipleNegativesRankingLoss, on this CPU.

The same model, pairs, scale, AdamW and threads; dropout on in both; in turn, several rounds. The
peer gets the best of several mini-batch sizes of a first sweep, and its own token budget
(mini_batch_num_tokens) where its version has one. Peak memory is that of a process of its own.

    python -m benchmarks.training [--rounds 3] [--pairs 64]
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cpu import MODEL, texts
from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.learn.ewc import Anchor
from stella_ray.learn.examples import open_examples
from stella_ray.learn.learner import Learner
from stella_ray.learn.mixing import ExampleStream, Mixture
from stella_ray.learn.recipe import AnchorSettings, ComputeSettings, OptimizerSettings
from stella_ray.learn.sources import ExampleSource
from stella_ray.learn.trainee import Trainee

SCALE, RATE = 30.0, 1e-6
SWEEP = (1, 2, 4)
TOKENS = (1_024,)


def pairs(count: int) -> list[tuple[str, str]]:
    """A document's first 16 characters with all of it."""
    return [("query: " + text[:16], "passage: " + text) for text in texts(count)]


def ours(count: int, home: Path) -> Callable[[], object]:
    """A step of `Learner`."""
    import json

    file = home / "pairs.jsonl"
    rows = [{"query": q, "passage": p} for q, p in pairs(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    spec = find_encoder(EncoderSettings(path=MODEL))
    trainee = Trainee(spec, ComputeSettings())
    source = ExampleSource(
        name="pairs", kind="pairs", files=[str(file)], batch_size=count, prefix="never", scale=SCALE
    )
    stream = ExampleStream(source, open_examples(source, home / "cache"), 0)
    steps = iter(range(10_000))
    learner = Learner(
        trainee,
        Mixture([stream], 0),
        OptimizerSettings(steps=10_000, learning_rate=RATE),
        Anchor(trainee.parameters.items(), AnchorSettings(importance="none")),
    )
    return lambda: learner.step(next(steps))


def theirs(count: int, **batching: int) -> Callable[[], object]:
    """The same with sentence-transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss

    spec = find_encoder(EncoderSettings(path=MODEL))
    model = SentenceTransformer(spec.folder, device="cpu")
    model.max_seq_length = spec.max_tokens
    model.train()
    loss = CachedMultipleNegativesRankingLoss(model, scale=SCALE, **batching)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-5)
    sides = list(zip(*pairs(count), strict=True))
    tokenize = getattr(model, "preprocess", None) or model.tokenize

    def step() -> None:
        features = [tokenize(list(side)) for side in sides]
        optimizer.zero_grad()
        loss(features, torch.zeros(count)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def seconds(step: Callable[[], object]) -> float:
    """Of one step."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def peak(count: int, **batching: Any) -> float:
    """GiB that a process of its own had at most, over two steps."""
    words = [f"{name}={value}" for name, value in batching.items()]
    command = [
        sys.executable,
        "-m",
        "benchmarks.training",
        "--pairs",
        str(count),
        "--alone",
        *words,
    ]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(said.split()[-1])


def main() -> None:
    """Print ratios of the peer's time to ours."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--alone", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.alone is not None:
            told = dict(word.split("=") for word in options.alone)
            whose = told.pop("whose")
            sizes = {name: int(value) for name, value in told.items()}
            count = options.pairs
            step = ours(count, Path(scratch)) if whose == "ours" else theirs(count, **sizes)
            step()
            step()
            print(high_water())
            return
        compare(options.rounds, options.pairs, Path(scratch))


def high_water() -> float:
    """Most memory that this program has had, GiB (ru_maxrss has its parent's, from before exec)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / (1 << 20)


def compare(rounds: int, count: int, home: Path) -> None:
    """Sweep the peer's batching, then take turns."""
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss

    step = ours(count, home)
    ways: list[dict[str, int]] = [{"mini_batch_size": size} for size in SWEEP]
    known = inspect.signature(CachedMultipleNegativesRankingLoss.__init__).parameters
    if "mini_batch_num_tokens" in known:
        ways += [{"mini_batch_num_tokens": size} for size in TOKENS]
    step()
    took = []
    for way in ways:
        peer = theirs(count, **way)
        took.append(min(seconds(peer), seconds(peer)))
        print(f"sentence-transformers {way}: {took[-1]:.1f} s", flush=True)
    best = ways[int(np.argmin(took))]
    peer = theirs(count, **best)
    peer()
    ratios, times = [], []
    for _ in range(rounds):
        times.append(seconds(step))
        ratios.append(seconds(peer) / times[-1])
        print(f"ours {times[-1]:.1f} s, sentence-transformers {best} x{ratios[-1]:.2f}", flush=True)
    print(
        f"sentence-transformers' time / ours: {statistics.median(ratios):.2f} ({min(ratios):.2f} to"
        f" {max(ratios):.2f}); peak memory: ours {peak(count, whose='ours'):.2f} GiB,"
        f" sentence-transformers {peak(count, whose='theirs', **best):.2f} GiB"
    )


if __name__ == "__main__":
    main()
