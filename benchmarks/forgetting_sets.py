"""What the forgetting benchmark measures by, and what it makes of it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stella_ray.encode.encoder import Encoder
from stella_ray.encode.tokens import TextTokenizer
from stella_ray.learn.shuffle import key_of
from stella_ray.learn.statistics import spearman

ROUNDS = 1_000
"""Of the bootstrap."""


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a jsonl.gz file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class Questions:
    """A retrieval set in two parts: documents to learn from, and others to be measured on."""

    def __init__(self, folder: Path, documents: int, tokenizer: TextTokenizer) -> None:
        texts = {row["_id"]: row["text"] for row in lines(folder / "corpus.jsonl.gz")}
        with gzip.open(folder / "qrels.tsv.gz", "rt", encoding="utf-8") as file:
            cells = [line.split() for line in file]
        # query, document, relevance; the TREC form has a 0 between the first two
        answers = {row[0]: row[-2] for row in cells if row[-2] in texts}
        order = sorted(texts, key=lambda name: key_of("part", name))
        learnt, other = (set(part) for part in np.split(np.array(order), [len(order) // 2]))
        asked = [q for q in lines(folder / "queries.jsonl.gz") if q["_id"] in answers]
        self.train = [
            {"query": q["text"], "passage": texts[answers[q["_id"]]]}
            for q in asked
            if answers[q["_id"]] in learnt
        ]
        late = [q for q in asked if q["answer_start"] >= 256 and answers[q["_id"]] in other]
        starts = tokenizer([texts[answers[q["_id"]]][: q["answer_start"]] for q in late])
        tokens = {q["_id"]: n for q, n in zip(late, starts.lengths.tolist(), strict=True)}
        # First the documents with an answer behind token 512, then others up to the number.
        rank = {answers[i]: -1 for i, n in tokens.items() if n > 512}
        rest = [name for name in order if name in other]
        self.documents = sorted(rest, key=lambda name: rank.get(name, 0))[:documents]
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


class Scored:
    """Pairs of texts that people have scored."""

    def __init__(self, path: Path, most: int) -> None:
        rows = lines(path)[:most]
        self.sides = [[row[name] for row in rows] for name in ("sentence1", "sentence2")]
        self.labels = np.array([float(row["label"]) for row in rows])

    def cosines(self, encoder: Encoder) -> np.ndarray:
        """Of each pair, without prefixes."""
        first, second = (encoder.embed(side, prefix="none") for side in self.sides)
        return np.asarray((first * second).sum(1))


@dataclass(frozen=True)
class Measured:
    """A model: hits by k, bool [questions], and cosines of each scored set."""

    hits: dict[int, np.ndarray]
    cosines: list[np.ndarray]

    def row(self, late: np.ndarray, labels: Sequence[np.ndarray]) -> dict[str, float]:
        """Its numbers."""
        out = {"similarity": similarity(self, [np.ones((len(y), 1)) for y in labels], labels)[0]}
        for k, hit in self.hits.items():
            out |= {f"recall@{k}": hit.mean(), f"late recall@{k}": hit[late].mean()}
        return {name: round(float(value), 4) for name, value in out.items()}


def similarity(
    one: Measured, counts: Sequence[np.ndarray], labels: Sequence[np.ndarray]
) -> np.ndarray:
    """Spearman's correlation, the sets' mean, in each resample, [resamples].

    Args:
        one: the model's cosines.
        counts: how often each row of a set counts in a resample, float64 [rows, resamples].
        labels: of each set.
    """
    found = [spearman(c, y, n) for c, y, n in zip(one.cosines, labels, counts, strict=True)]
    return np.asarray(np.mean(found, axis=0))


def resampled(rows: int, dice: np.random.Generator) -> np.ndarray:
    """How often each row counts: once in the first resample, by chance in the others."""
    drawn = dice.multinomial(rows, np.full(rows, 1 / rows), ROUNDS).T
    return np.concatenate([np.ones((rows, 1)), drawn], axis=1)


def summary(
    start: Measured,
    found: dict[str, list[list[Measured]]],
    late: np.ndarray,
    labels: Sequence[np.ndarray],
) -> list[str]:
    """Lines about each arm's end: gain, fall, and similarity against the free arm at equal gain.

    Intervals are the middle 95% over resampled questions and pairs, of means over seeds: they say
    what other questions would do, not what other seeds would (those are printed one by one).

    Args:
        start: the base.
        found: by arm, a curve a seed.
        late: which questions have their answer behind token 512.
        labels: of each scored set.
    """
    dice = np.random.default_rng(0)
    asked = resampled(len(late), dice)
    counts = [resampled(len(one), dice) for one in labels]
    base = similarity(start, counts, labels)

    def falls(models: Sequence[Measured]) -> np.ndarray:
        return np.mean([similarity(m, counts, labels) for m in models], axis=0) - base

    def gains(models: Sequence[Measured], k: int, which: np.ndarray) -> np.ndarray:
        gap = np.mean([m.hits[k] for m in models], axis=0) - start.hits[k]
        return np.asarray((gap * which) @ asked / (which @ asked))

    out, every = [], np.ones_like(late)
    curves = {
        arm: [(gains(models, 1, every), falls(models)) for models in zip(*found[arm], strict=True)]
        for arm in found
    }
    for arm, points in curves.items():
        ends = [curve[-1] for curve in found[arm]]
        for k in (1, 5):
            for name, which in (("all", every), ("late", late)):
                out.append(told(f"{arm}: recall@{k} {name}", gains(ends, k, which)))
        out.append(told(f"{arm}: similarity", points[-1][1]))
    free = next((arm for arm in found if arm.startswith("none")), None)
    for arm, points in curves.items():
        if free in (None, arm):
            continue
        for number, (gain, fall) in enumerate(points):
            expected = [at_gain(curves[free], gain[i], i) for i in range(len(gain))]
            words = f"{arm} point {number + 1} (recall@1 {gain[0]:+.4f}): similarity over {free}'s"
            out.append(told(f"{words} at equal gain", fall - np.array(expected)))
    return out


def at_gain(curve: Sequence[tuple[np.ndarray, np.ndarray]], gain: float, draw: int) -> float:
    """The free arm's similarity where its gain was as great.

    Linear between its points, of which the base is the first; its end's where it never gained so
    much.
    """
    points = sorted([(0.0, 0.0), *((one[draw], fall[draw]) for one, fall in curve)])
    return float(np.interp(gain, [x for x, _ in points], [y for _, y in points]))


def told(name: str, values: np.ndarray) -> str:
    """A measure (the first value) with its interval (over the others)."""
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return f"{name} {values[0]:+.4f} [{low:+.4f}, {high:+.4f}]"
