"""Does fine-tuning on long documents cost what the encoder could before, and do anchors help?

The bundled multilingual-e5-small is extended to 1,024 positions and trained on (question, document)
pairs of some of a set's documents; measured are Recall@1 and @5 on its other documents, also for
answers behind token 512 alone, and Spearman's correlation on scored pairs that it never saw. Every
difference has a paired bootstrap interval over questions (or scored pairs).

    python -m benchmarks.forgetting --retrieval DIR --similarity FILE --general FILE

DIR holds corpus.jsonl.gz (_id, text), queries.jsonl.gz (_id, text, answer_start) and qrels.tsv.gz;
the similarity file sentence1, sentence2, label; the general one query, title.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stella_ray.encode.encoder import Encoder
from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.learn.ewc import Anchor
from stella_ray.learn.examples import open_examples
from stella_ray.learn.extend import extend_model
from stella_ray.learn.fisher import FisherNotes, diagonal_fisher, save_fisher
from stella_ray.learn.learner import Learner
from stella_ray.learn.mixing import ExampleStream, Mixture
from stella_ray.learn.recipe import AnchorSettings, ComputeSettings, OptimizerSettings
from stella_ray.learn.shuffle import key_of
from stella_ray.learn.sources import ExampleSource
from stella_ray.learn.statistics import spearman
from stella_ray.learn.trainee import Trainee

ROUNDS = 1_000
"""Of the bootstrap."""


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a jsonl.gz file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class Questions:
    """A retrieval set in two parts: documents to learn from, and others to be measured on."""

    def __init__(self, folder: Path, documents: int, model: str) -> None:
        texts = {row["_id"]: row["text"] for row in lines(folder / "corpus.jsonl.gz")}
        with gzip.open(folder / "qrels.tsv.gz", "rt", encoding="utf-8") as file:
            cells = [line.split() for line in file]
        # query, document, relevance; the TREC form has a 0 between the first two
        answers = {row[0]: row[-2] for row in cells if row[-2] in texts}
        order = sorted(texts, key=lambda name: key_of("part", name))
        half = order[: len(order) // 2], order[len(order) // 2 :]
        asked = [q for q in lines(folder / "queries.jsonl.gz") if q["_id"] in answers]
        self.train = [
            {"query": q["text"], "passage": texts[answers[q["_id"]]]}
            for q in asked
            if answers[q["_id"]] in set(half[0])
        ]
        tokenizer = Encoder(model).tokenizer
        late = [q for q in asked if q["answer_start"] >= 256 and answers[q["_id"]] in set(half[1])]
        starts = tokenizer([texts[answers[q["_id"]]][: q["answer_start"]] for q in late])
        tokens = {q["_id"]: n for q, n in zip(late, starts.lengths.tolist(), strict=True)}
        # First the documents with an answer behind token 512, then others up to the number.
        rank = {answers[i]: -1 for i, n in tokens.items() if n > 512}
        self.documents = sorted(half[1], key=lambda name: rank.get(name, 0))[:documents]
        place = {name: i for i, name in enumerate(self.documents)}
        test = [q for q in asked if answers[q["_id"]] in place]
        self.texts = [texts[name] for name in self.documents]
        self.queries = [q["text"] for q in test]
        self.relevant = np.array([place[answers[q["_id"]]] for q in test])
        self.late = np.array([tokens.get(q["_id"], 0) > 512 for q in test])

    def hits(self, encoder: Encoder) -> dict[int, np.ndarray]:
        """Whether each question's document is among the best k, bool [questions], by k."""
        queries = encoder.embed(self.queries, prefix="query")
        scores = queries @ encoder.embed(self.texts, prefix="passage").T
        own = scores[np.arange(len(queries)), self.relevant]
        ranks = (scores > own[:, None]).sum(1)
        return {k: ranks < k for k in (1, 5)}


def correlation(cosines: np.ndarray, labels: np.ndarray) -> float:
    """Spearman's."""
    return float(spearman(cosines, labels, np.ones((len(labels), 1)))[0])


def interval(measure: Callable[[np.ndarray], float], count: int) -> tuple[float, float]:
    """The middle 95% of a measure over resampled rows."""
    dice = np.random.default_rng(0)
    found = [measure(dice.integers(0, count, count)) for _ in range(ROUNDS)]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    """Print a line an arm and seed, and the differences."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    for name in ("retrieval", "similarity", "general"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=300, help="to be measured on")
    parser.add_argument("--pairs", type=int, default=600, help="scored ones")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--layers", type=int, default=0, help="keep so many; 0: all")
    parser.add_argument("--max_tokens", type=int, default=1024)
    parser.add_argument("--fisher_rows", type=int, default=128)
    parser.add_argument("--arms", nargs="+", default=["none:0", "identity:20", "fisher:20"])
    parser.add_argument("--save", type=Path, help="a file for the numbers")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        judged(options, Path(scratch))


def judged(options: argparse.Namespace, home: Path) -> None:
    """The whole comparison."""
    small = find_encoder(EncoderSettings(path="multilingual-e5-small"))
    base = str(extend_model(small, str(home / "base"), 1_024, 0.2))
    settings = EncoderSettings(path=base, max_tokens=options.max_tokens)
    questions = Questions(options.retrieval, options.documents, base)
    scored = lines(options.similarity)[: options.pairs]
    labels = np.array([float(row["label"]) for row in scored])
    train = home / "train.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in questions.train)
    train.write_text(text, encoding="utf-8")
    print(
        f"{len(questions.train)} pairs to learn from; {len(questions.queries)} questions on"
        f" {len(questions.texts)} other documents, {int(questions.late.sum())} of them with the"
        f" answer behind token 512; {len(scored)} scored pairs",
        flush=True,
    )

    def measured(path: str) -> tuple[dict[int, np.ndarray], np.ndarray]:
        encoder = Encoder(dataclasses.replace(settings, path=path))
        sides = [
            encoder.embed([row[name] for row in scored], prefix="none")
            for name in ("sentence1", "sentence2")
        ]
        return questions.hits(encoder), (sides[0] * sides[1]).sum(1)

    def told(name: str, found: tuple[dict[int, np.ndarray], np.ndarray]) -> dict[str, float]:
        hits, cosines = found
        late = questions.late
        row = {"similarity": correlation(cosines, labels)}
        for k, hit in hits.items():
            row |= {f"recall@{k}": float(hit.mean()), f"late recall@{k}": float(hit[late].mean())}
        print(name, {key: round(value, 4) for key, value in row.items()}, flush=True)
        return row

    results: dict[str, Any] = {"options": {k: str(v) for k, v in vars(options).items()}}
    start = measured(base)
    results["base"] = told("base", start)
    fisher = home / "fisher.safetensors"
    if any(arm.startswith("fisher") for arm in options.arms):
        began = time.perf_counter()
        save_fisher(fisher, *general_fisher(settings, options, home))
        print(f"Fisher information in {time.perf_counter() - began:.0f} s", flush=True)
    found: dict[str, list[tuple[dict[int, np.ndarray], np.ndarray]]] = {}
    for seed in range(options.seeds):
        for arm in options.arms:
            kind, strength = arm.split(":")
            anchor = AnchorSettings(
                importance=kind,  # type: ignore[arg-type]
                strength=float(strength),
                fisher=str(fisher) if kind == "fisher" else None,
                free_positions_from=512,
            )
            began = time.perf_counter()
            out = trained(settings, anchor, train, options, seed, home / f"{arm}-{seed}")
            print(f"{arm} seed {seed}: trained in {time.perf_counter() - began:.0f} s", flush=True)
            found.setdefault(arm, []).append(measured(out))
            results[f"{arm} seed {seed}"] = told(f"{arm} seed {seed}", found[arm][-1])
    compare(start, found, questions.late, labels, results)
    if options.save:
        options.save.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def trained(
    settings: EncoderSettings,
    anchor: AnchorSettings,
    train: Path,
    options: argparse.Namespace,
    seed: int,
    out: Path,
) -> str:
    """A model folder of an arm and a seed."""
    spec = find_encoder(settings)
    trainee = Trainee(spec, ComputeSettings())
    source = ExampleSource(
        name="questions",
        kind="pairs",
        files=[str(train)],
        batch_size=options.batch,
        prefix="always",
    )
    stream = ExampleStream(
        source,
        open_examples(source, train.parent / "cache"),
        seed,
        spec.query_prefix,
        spec.passage_prefix,
    )
    optimizer = OptimizerSettings(steps=options.steps, learning_rate=options.rate, warmup=0.1)
    held = Anchor(trainee.parameters.items(), anchor)
    learner = Learner(trainee, Mixture([stream], seed), optimizer, held, seed=seed)
    reports = [learner.step(step) for step in range(options.steps)]
    ends = reports[0], reports[-1]
    words = [f"loss {one.loss:.3f}, penalty {one.penalty_share:.1%}" for one in ends]
    print(f"first step: {words[0]}; last: {words[1]}", flush=True)
    return str(trainee.save(out))


def general_fisher(
    settings: EncoderSettings, options: argparse.Namespace, home: Path
) -> tuple[dict[str, torch.Tensor], FisherNotes]:
    """The base model's Fisher information on general pairs, in pools of 16."""
    spec = find_encoder(settings)
    trainee = Trainee(spec, ComputeSettings())
    trainee.model.eval()
    rows = lines(options.general)
    pools = []
    for first in range(0, options.fisher_rows, 16):
        part = rows[first : first + 16]
        queries = [spec.query_prefix + row["query"] for row in part]
        pools.append((queries, [spec.passage_prefix + row["title"] for row in part]))

    def vectors(texts: list[str]) -> torch.Tensor:
        ragged = trainee.tokenizer(texts)
        cut, _ = trainee.cut(ragged)
        keys = np.zeros(len(texts), np.uint64)
        parts = torch.cat([trainee.vectors(ragged, batch, keys) for batch in cut])
        return parts[torch.from_numpy(np.concatenate(cut)).argsort()]

    notes = FisherNotes(weights=spec.fingerprint["weights"], data=str(home.name), pool=16)
    return diagonal_fisher(trainee.model, vectors, pools, notes)


def compare(
    start: tuple[dict[int, np.ndarray], np.ndarray],
    found: dict[str, list[tuple[dict[int, np.ndarray], np.ndarray]]],
    late: np.ndarray,
    labels: np.ndarray,
    results: dict[str, Any],
) -> None:
    """Differences to the base and between arms, means over seeds, with 95% intervals."""
    names = list(found)
    pairs = [("base", name) for name in names]
    pairs += [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    sides = {"base": [start], **found}
    for a, b in pairs:
        for k in (1, 5):
            for which, rows in (("all", np.ones_like(late)), ("late", late)):
                ends = [
                    np.mean([hits[k][rows] for hits, _ in sides[name]], axis=0) for name in (a, b)
                ]
                gap = ends[1] - ends[0]
                low, high = interval(lambda at, gap=gap: float(gap[at].mean()), len(gap))  # type: ignore[misc]
                line = f"{gap.mean():+.4f} [{low:+.4f}, {high:+.4f}]"
                results[f"{b} - {a}: recall@{k} {which}"] = line
                print(f"{b} - {a}: recall@{k} {which} {line}", flush=True)

        def gap_of(at: np.ndarray, a: str = a, b: str = b) -> float:
            ends = [
                np.mean([correlation(cosines[at], labels[at]) for _, cosines in sides[name]])
                for name in (a, b)
            ]
            return float(ends[1] - ends[0])

        low, high = interval(gap_of, len(labels))
        line = f"{gap_of(np.arange(len(labels))):+.4f} [{low:+.4f}, {high:+.4f}]"
        results[f"{b} - {a}: similarity"] = line
        print(f"{b} - {a}: similarity {line}", flush=True)


if __name__ == "__main__":
    main()
