"""Whatever a file holds: does a reader account for each row once, or refuse it in one line?

Inputs are mutated real ones, made from the seed: a line of a shard, a row of csv or a whole file,
as the table says. They are read in a process of bounded memory. A fault is another exception than
ours, a message of several lines, a row lost or counted twice, a hang of 20 seconds or a crash; its
file is kept.

    python -m benchmarks.fuzz [--inputs 1000000] [--first 0] [--seed 0] [--folder DIR]

Inputs `first` to `first + inputs` are the same ones whatever the number of commands they are in.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from benchmarks.fuzz_examples import evaluation, overlap, retrieval, squad, training
from benchmarks.fuzz_shards import Tally, csv_rows, jsonl_lines, parquet, whole_file

CHUNK = 1_000
"""Inputs of one format in a row."""

MEMORY = 6 << 30
"""Address space that a reader's process may take besides what its libraries have mapped."""


READERS: dict[str, tuple[Callable[[random.Random, Path, int], Tally], str, int]] = {
    "jsonl, a line": (jsonl_lines, "a.jsonl", 38),
    "csv, a row": (csv_rows, "a.csv", 20),
    "jsonl, a file": (whole_file(".jsonl"), "a.jsonl", 5),
    "csv, a file": (whole_file(".csv"), "a.csv", 5),
    "jsonl.gz, a file": (whole_file(".jsonl.gz"), "a.jsonl.gz", 4),
    "csv.zst, a file": (whole_file(".csv.zst"), "a.csv.zst", 4),
    "ndjson.zst, a file": (whole_file(".ndjson.zst"), "a.ndjson.zst", 2),
    "parquet, a file": (parquet, "a.parquet", 6),
    "training examples, a file": (training, "training", 7),
    "evaluation rows, a file": (evaluation, "evaluation", 4),
    "reading comprehension, a file": (squad, "squad", 2),
    "retrieval folders, a file": (retrieval, "folder", 1),
    "texts to compare with, a file": (overlap, "overlap", 2),
}  # fmt: skip
"""What an input is, the function, the file's name, and how many of a hundred inputs."""


def formats() -> list[str]:
    """A hundred chunks' formats, mixed, in the shares of `READERS`."""
    names = [name for name, (_, _, share) in READERS.items() for _ in range(share)]
    random.Random(0).shuffle(names)
    return names


def chunk(number: int, count: int, seed: int, folder: str) -> tuple[Tally, float]:
    """Feed one chunk; its tally, and the most memory this process ever had, in MiB."""
    feed, file, _ = READERS[formats()[number % 100]]
    tally = feed(random.Random(f"{seed}/{number}"), Path(folder) / file, count)
    return tally, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bounded() -> None:
    """In a reader's process: bound its memory, and let a crash show where."""
    faulthandler.enable()
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))


def run(first: int, inputs: int, seed: int, folder: Path) -> tuple[dict[str, Tally], float]:
    """The tallies by format, and the peak of memory in MiB."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    context = multiprocessing.get_context("spawn")
    began, peak, done = time.perf_counter(), 0.0, 0
    plan = [
        (number, min(CHUNK, first + inputs - number * CHUNK))
        for number in range(first // CHUNK, -(-(first + inputs) // CHUNK))
    ]
    pool = ProcessPoolExecutor(1, context, initializer=bounded)
    for number, count in plan:
        name = formats()[number % 100]
        try:
            tally, memory = pool.submit(chunk, number, count, seed, str(folder)).result()
        except BrokenProcessPool:
            tally, memory = (
                Tally(inputs=count, faults=[f"{name}: the process died in chunk {number}"]),
                0.0,
            )
            pool = ProcessPoolExecutor(1, context, initializer=bounded)
        tallies[name].add(tally)
        peak, done = max(peak, memory), done + tally.inputs
        for fault in tally.faults:
            print(f"FAULT {name}: {fault}", flush=True)
        if number % 50 == 49 or number == plan[-1][0]:
            spent = time.perf_counter() - began
            print(f"{done:,} inputs, {spent:.0f} s, {peak:,.0f} MiB", file=sys.stderr, flush=True)
    pool.shutdown()
    return tallies, peak


def table(tallies: dict[str, Tally]) -> str:
    """What became of the inputs, a line a format."""
    lines = ["| an input is | inputs | rows | rejects | refused files | faults |", "|" + "---|" * 6]
    total = Tally()
    for name in (name for name in READERS if name in tallies):
        total.add(tallies[name])
        lines.append(_line(name, tallies[name]))
    return "\n".join([*lines, _line("all", total)])


def _line(name: str, tally: Tally) -> str:
    numbers = (tally.inputs, tally.rows, tally.rejects, tally.refused, len(tally.faults))
    return f"| {name} | " + " | ".join(f"{number:,}" for number in numbers) + " |"


def main() -> None:
    """Print the faults as they come and the table in the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="where files of faults stay; default: a new one"
    )
    asked = parser.parse_args()
    if asked.first % CHUNK:
        parser.error(f"--first {asked.first}: expected a multiple of {CHUNK}")
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    tallies, peak = run(asked.first, asked.inputs, asked.seed, folder)
    print(table(tallies))
    faults = list(itertools.chain.from_iterable(tally.faults for tally in tallies.values()))
    print(f"{len(faults)} faults; at most {peak:,.0f} MiB in a reader's process; files in {folder}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
