"""Does fine-tuning on long documents cost what the encoder could before, and do anchors help?

An encoder is extended to 1,024 positions and trained on (question, document) pairs of half of a
set's documents. Measured on the way are Recall@1 and @5 on its other documents, for answers behind
token 512 alone too, and Spearman's correlation on scored pairs that it never saw. An arm is a kind
of anchor and its strength, such as none:0, identity:20 or fisher:20; each is measured at several
steps, so that it draws a curve of similarity against gain, and so do mixtures of the base and the
free arm's end (WiSE-FT). Anchors are compared with the free arm at equal gain.

    python -m benchmarks.forgetting --base FOLDER|NAME --retrieval DIR --similarity FILE...
        --general FILE

DIR holds corpus.jsonl.gz (_id, text), queries.jsonl.gz (_id, text, answer_start) and qrels.tsv.gz;
similarity files sentence1, sentence2, label; the general one query, title.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.forgetting_sets import Measured, Questions, Scored, lines, summary
from stella_ray.encode.encoder import Encoder
from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.learn.ewc import Anchor
from stella_ray.learn.examples import open_examples
from stella_ray.learn.extend import extend_model
from stella_ray.learn.fisher import FisherNotes, diagonal_fisher, save_fisher
from stella_ray.learn.learner import Learner
from stella_ray.learn.merging import merge_models
from stella_ray.learn.mixing import ExampleStream, Mixture
from stella_ray.learn.recipe import AnchorSettings, ComputeSettings, OptimizerSettings
from stella_ray.learn.sources import ExampleSource
from stella_ray.learn.trainee import Trainee


def main() -> None:
    """Print a line an arm, seed and step, and then what the differences are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--base", default="multilingual-e5-small")
    parser.add_argument("--retrieval", type=Path, required=True)
    parser.add_argument("--similarity", type=Path, nargs="+", required=True)
    parser.add_argument("--general", type=Path, required=True, help="for the Fisher information")
    parser.add_argument("--documents", type=int, default=300, help="to be measured on")
    parser.add_argument("--pairs", type=int, default=600, help="of each scored file")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--points", type=int, default=3, help="measured on the way, end included")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--fisher_rows", type=int, default=128)
    parser.add_argument("--arms", nargs="+", default=["none:0", "identity:20", "fisher:20"])
    parser.add_argument("--mixtures", type=float, nargs="*", default=[], help="weights, 0 to 1")
    parser.add_argument("--save", type=Path, help="a file for the numbers")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        Judge(options, Path(scratch)).run()


class Judge:
    """One base, one set of questions, all arms."""

    def __init__(self, options: argparse.Namespace, home: Path) -> None:
        self.options, self.home = options, home
        given = find_encoder(EncoderSettings(path=options.base))
        self.base = str(extend_model(given, str(home / "base"), 1_024, 0.2))
        self.settings = EncoderSettings(path=self.base, max_tokens=1_024)
        tokenizer = Encoder(self.base).tokenizer
        self.questions = Questions(options.retrieval, options.documents, tokenizer)
        self.scored = [Scored(path, options.pairs) for path in options.similarity]
        self.train = home / "train.jsonl"
        rows = (json.dumps(row, ensure_ascii=False) + "\n" for row in self.questions.train)
        self.train.write_text("".join(rows), encoding="utf-8")

    def run(self) -> None:
        """All arms and seeds."""
        options, questions = self.options, self.questions
        print(
            f"{len(questions.train)} pairs to learn from; {len(questions.queries)} questions on"
            f" {len(questions.texts)} other documents, {int(questions.late.sum())} of them with the"
            f" answer behind token 512; scored pairs: {[len(one.labels) for one in self.scored]}",
            flush=True,
        )
        start = self.measured("base", self.base)
        fisher = self.home / "fisher.safetensors"
        if any(arm.startswith("fisher") for arm in options.arms):
            save_fisher(fisher, *self.general_fisher())
        found: dict[str, list[list[Measured]]] = {arm: [] for arm in options.arms}
        for seed in options.seeds:
            for arm in options.arms:
                kind, strength = arm.split(":")
                anchor = AnchorSettings(
                    importance=kind,  # type: ignore[arg-type]
                    strength=float(strength),
                    fisher=str(fisher) if kind == "fisher" else None,
                    free_positions_from=512,
                )
                curve, end = self.curve(arm, anchor, seed)
                found[arm].append(curve)
                if kind == "none" and options.mixtures:
                    mixed = found.setdefault("mixtures", [])
                    mixed.append([self.mixture(end, seed, weight) for weight in options.mixtures])
        report = summary(start, found, questions.late, [one.labels for one in self.scored])
        print("\n".join(report), flush=True)
        if options.save:
            told: dict[str, Any] = {"options": {k: str(v) for k, v in vars(options).items()}}
            told |= {"base": self.row(start), "report": report}
            told["arms"] = {
                arm: [[self.row(one) for one in curve] for curve in curves]
                for arm, curves in found.items()
            }
            options.save.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    def measured(self, name: str, path: str) -> Measured:
        """A model folder's hits and cosines."""
        encoder = Encoder(dataclasses.replace(self.settings, path=path))
        cosines = [one.cosines(encoder) for one in self.scored]
        out = Measured(self.questions.hits(encoder), cosines)
        print(name, self.row(out), flush=True)
        return out

    def row(self, one: Measured) -> dict[str, float]:
        """For people."""
        return one.row(self.questions.late, [scored.labels for scored in self.scored])

    def mixture(self, end: str, seed: int, weight: float) -> Measured:
        """The base and a free arm's end, mixed (WiSE-FT)."""
        tuned = find_encoder(dataclasses.replace(self.settings, path=end))
        out = str(self.home / f"mixture-{seed}-{weight}")
        merge_models(find_encoder(self.settings), tuned, out, weight)
        return self.measured(f"mixture {weight} seed {seed}", out)

    def curve(self, arm: str, anchor: AnchorSettings, seed: int) -> tuple[list[Measured], str]:
        """Train one arm; what was measured on the way, and the last folder."""
        options = self.options
        spec = find_encoder(self.settings)
        trainee = Trainee(spec, ComputeSettings())
        source = ExampleSource(
            name="questions",
            kind="pairs",
            files=[str(self.train)],
            batch_size=options.batch,
            prefix="always",
        )
        examples = open_examples(source, self.home / "cache")
        stream = ExampleStream(source, examples, seed, spec.query_prefix, spec.passage_prefix)
        optimizer = OptimizerSettings(steps=options.steps, learning_rate=options.rate, warmup=0.1)
        held = Anchor(trainee.parameters.items(), anchor)
        learner = Learner(trainee, Mixture([stream], seed), optimizer, held, seed=seed)
        out, points, folder = [], options.points, ""
        stops = {options.steps * (i + 1) // points for i in range(points)}
        began = time.perf_counter()
        for step in range(1, options.steps + 1):
            report = learner.step(step - 1)
            if step in stops:
                told = f"loss {report.loss:.3f}, penalty {report.penalty_share:.1%}"
                print(f"{arm} seed {seed}: {time.perf_counter() - began:.0f} s, {told}", flush=True)
                folder = str(trainee.save(str(self.home / f"{arm}-{seed}-{step}")))
                out.append(self.measured(f"{arm} seed {seed} step {step}", folder))
        return out, folder

    def general_fisher(self) -> tuple[dict[str, torch.Tensor], FisherNotes]:
        """The base model's Fisher information on general pairs, in pools of 16."""
        spec = find_encoder(self.settings)
        trainee = Trainee(spec, ComputeSettings())
        trainee.model.eval()
        rows = lines(self.options.general)
        pools = []
        for first in range(0, self.options.fisher_rows, 16):
            part = rows[first : first + 16]
            queries = [spec.query_prefix + row["query"] for row in part]
            pools.append((queries, [spec.passage_prefix + row["title"] for row in part]))

        def vectors(texts: list[str]) -> torch.Tensor:
            ragged = trainee.tokenizer(texts)
            cut, _ = trainee.cut(ragged)
            keys = np.zeros(len(texts), np.uint64)
            parts = torch.cat([trainee.vectors(ragged, batch, keys) for batch in cut])
            return parts[torch.from_numpy(np.concatenate(cut)).argsort()]

        notes = FisherNotes(weights=spec.fingerprint["weights"], data=self.home.name, pool=16)
        return diagonal_fisher(trainee.model, vectors, pools, notes)


if __name__ == "__main__":
    main()
