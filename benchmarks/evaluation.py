"""C-MTEB tasks through the embedding actors against mteb with sentence-transformers.

The same model folder, files, prompts and protocol; whole processes by the clock, in turn: ours with
the start of Ray and of its actors, mteb's with its imports and the model's loading, at each of the
batch sizes. Also says how far apart the scores are.

    python -m benchmarks.evaluation --data DIR --tasks ATEC,TNews,Ocnli [--model …] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from stella_ray.evaluate.tasks import CMTEB, find_tasks

Scores = dict[str, dict[str, float]]


def ours(given: argparse.Namespace, folder: str) -> Scores:
    """The job, records in a folder of its own, and no prefixes."""
    with tempfile.TemporaryDirectory() as output:
        _python(
            "jobs/evaluate.py", "--encoder.path", folder, "--suite", given.tasks, "--data",
            given.data, "--output", output, "--prefixes", "none",
        )  # fmt: skip
        report = json.loads(next(Path(output).glob("*/report.json")).read_text())
    return {one["task"]: one["metrics"] for one in report["tasks"] if one["ranking"] == "vectors"}


def theirs(given: argparse.Namespace, folder: str, batch_size: int) -> Scores:
    """The same files by mteb, in a process of its own."""
    said = _python(
        "-m", "benchmarks.evaluation", "--data", given.data, "--tasks", given.tasks, "--model",
        folder, "--peer", str(batch_size),
    )  # fmt: skip
    scores: Scores = json.loads(said.splitlines()[-1])
    return scores


def _python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2_000:]}")
    return done.stdout


def peer(folder: str, data: str, names: list[str], batch_size: int) -> Scores:
    """Take the files to mteb; ours only reads them into its tasks."""
    import mteb
    from sentence_transformers import SentenceTransformer

    from stella_ray.evaluate.cmteb import open_task
    from stella_ray.evaluate.local_data import find_local

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
        scores = found.task_results[0].scores[task.split][0]
        out[task.name] = {
            metric: float(value)
            for metric, value in scores.items()
            if isinstance(value, (int, float))
        }
    return out


def main() -> None:
    """Time both in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--model", default="multilingual-e5-small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_sizes", default="32")
    parser.add_argument("--peer", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    names = find_tasks(given.tasks.split(","))
    if given.peer:
        print(json.dumps(peer(given.model, given.data, names, given.peer)))
        return
    from stella_ray.encode.models import EncoderSettings, find_encoder

    folder = find_encoder(EncoderSettings(path=given.model)).folder
    ways = {"ours": lambda: ours(given, folder)}
    for size in map(int, given.batch_sizes.split(",")):
        ways[f"mteb, batches of {size}"] = lambda size=size: theirs(given, folder, size)
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
    reference = scores[list(ways)[1]]
    for name in names:
        own, other = scores["ours"][name], reference[name]
        gap = max(abs(value - other[metric]) for metric, value in own.items() if metric in other)
        print(f"{name}: {CMTEB[name].metric} {own[CMTEB[name].metric]:.6f}, all within {gap:.1e}")


if __name__ == "__main__":
    main()
