"""C-MTEB tasks through the embedding actors against mteb with sentence-transformers.

The same model folder, files, prompts and protocol; whole runs by the clock, in turn: ours with the
start of Ray and of its actors, mteb's with the model's loading, at its default batch size and at
--batch_size. Also says how far apart the scores are.

    python -m benchmarks.evaluation --data DIR --tasks ATEC,TNews,Ocnli [--model …] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from typing import Any

import mteb
from sentence_transformers import SentenceTransformer

from jobs.evaluate import EvaluateJob, run
from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.evaluate.cmteb import open_task
from stella_ray.evaluate.local_data import find_local
from stella_ray.evaluate.tasks import CMTEB, find_tasks

Scores = dict[str, dict[str, float]]


def ours(model: str, data: str, names: list[str]) -> Scores:
    """The job, records in a folder of its own, and no prefixes."""
    with tempfile.TemporaryDirectory() as output:
        job = EvaluateJob(
            encoder=EncoderSettings(path=model), suite=",".join(names), data=data, output=output,
            prefixes="none",
        )  # fmt: skip
        return {
            one["task"]: one["metrics"] for one in run(job)["tasks"] if one["ranking"] == "vectors"
        }


def theirs(folder: str, data: str, names: list[str], batch_size: int) -> Scores:
    """Take the same files to mteb."""
    tasks = [CMTEB[name] for name in names]
    local = find_local(data, tasks)
    model = SentenceTransformer(folder)
    model.prompts = {}
    out: Scores = {}
    for task in tasks:
        found: Any = mteb.evaluate(
            model, open_task(task, local[task.name]), cache=None, show_progress_bar=False,
            encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
        )  # fmt: skip
        out[task.name] = found.task_results[0].scores[task.split][0]
    return out


def main() -> None:
    """Time both in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--model", default="multilingual-e5-small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=8)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    names = find_tasks(given.tasks.split(","))
    folder = find_encoder(EncoderSettings(path=given.model)).folder
    ways = {
        "ours": lambda: ours(given.model, given.data, names),
        "mteb, batches of 32": lambda: theirs(folder, given.data, names, 32),
        f"mteb, batches of {given.batch_size}": lambda: theirs(
            folder, given.data, names, given.batch_size
        ),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    scores: dict[str, Scores] = {}
    for _ in range(given.rounds):
        for way, call in ways.items():
            began = time.monotonic()
            scores[way] = call()
            seconds[way].append(time.monotonic() - began)
            print(f"{way}: {seconds[way][-1]:.1f} s", flush=True)
    least = statistics.median(seconds["ours"])
    for way, took in seconds.items():
        ratio = statistics.median(took) / least
        ends = f"{min(took):.1f} to {max(took):.1f}"
        print(f"{way}: {statistics.median(took):.1f} s ({ends}), {ratio:.2f} times ours")
    for name in names:
        peer = scores["mteb, batches of 32"][name]
        gap = max(
            abs(value - peer[metric])
            for metric, value in scores["ours"][name].items()
            if metric in peer
        )
        metric = CMTEB[name].metric
        print(f"{name}: {metric} {scores['ours'][name][metric]:.6f}, all metrics within {gap:.1e}")


if __name__ == "__main__":
    main()
