"""Small sources of every kind, for the tests of training."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from stella_ray.learn.sources import ExampleSource
from tests.conftest import HAN


def words(dice: random.Random, least: int, most: int) -> str:
    return "".join(dice.choices(HAN[:400], k=dice.randint(least, most)))


def write_sources(folder: Path, rows: int = 40, batch_size: int = 12) -> list[ExampleSource]:
    """Pairs with zero to three hard negatives, scored pairs and NLI."""
    dice = random.Random(5)
    folder.mkdir(parents=True, exist_ok=True)
    pairs, scored, nli = [], [], []
    for _ in range(rows):
        query, passage = words(dice, 2, 12), words(dice, 10, 90)
        negatives = [words(dice, 10, 60) for _ in range(dice.randint(0, 3))]
        pairs.append({"query": query, "passage": passage, "negatives": negatives})
        scored.append({"query": query, "passage": words(dice, 2, 20), "label": dice.randint(0, 5)})
        label = dice.choice(["contradiction", "neutral", "entailment"])
        nli.append({"query": query, "passage": words(dice, 2, 20), "label": label})
    pairs[3]["passage"] = pairs[2]["passage"]  # a duplicate, to be masked
    for name, found in (("pairs", pairs), ("scored", scored), ("nli", nli)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    common: dict[str, Any] = {"batch_size": batch_size}
    return [
        ExampleSource(
            name="pairs",
            kind="pairs",
            files=[str(folder / "pairs.jsonl")],
            negatives_column="negatives",
            negative_share=0.5,
            prefix="always",
            **common,
        ),
        ExampleSource(name="scored", kind="scored", files=[str(folder / "scored.jsonl")], **common),
        ExampleSource(name="nli", kind="nli", files=[str(folder / "nli.jsonl")], **common),
    ]
