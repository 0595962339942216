"""What do a first night and a night without changes cost, as the number of rows grows?

Runs the whole job three times over N short rows in parquet shards, with an encoder of one small
layer in the place of a real one, and prints seconds, the most memory of any process of each role,
and what each stage of the driver took. Between the runs nothing changes; the third is told to read
the shards all the same.

    python -m benchmarks.scale --rows 10000 100000 1000000
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.memory import most_memory
from stella_ray.pipeline.stamps import SETTLED_SECONDS
from tests.conftest import HAN, make_encoder

ROWS_PER_SHARD = 50_000


def write_corpus(folder: Path, rows: int) -> None:
    """Rows of 8 to 24 characters, a text of its own for each."""
    folder.mkdir()
    dice = random.Random(rows)
    letters = "".join(dice.choices(HAN, k=200_000))
    for first in range(0, rows, ROWS_PER_SHARD):
        numbers = range(first, min(rows, first + ROWS_PER_SHARD))
        places = [dice.randrange(len(letters) - 24) for _ in numbers]
        texts = [letters[at : at + 8 + i % 17] for i, at in zip(numbers, places, strict=True)]
        table = pa.table({"id": [f"doc-{i}" for i in numbers], "text": texts})
        pq.write_table(table, folder / f"{first:09}.parquet")


def night(corpus: Path, table: Path, encoder: Path, more: list[str]) -> dict[str, Any]:
    """Run the job; its report, with its own wall time and memory."""
    report = table.parent / "last.json"
    command = [sys.executable, "jobs/embed.py", "--corpus", str(corpus), "--table", str(table)]
    command += ["--encoder.path", str(encoder), "--report", str(report), *more]
    began = time.perf_counter()
    peaks = most_memory(command)
    seconds = time.perf_counter() - began
    return {**json.loads(report.read_text("utf-8")), "wall": seconds, "peaks": peaks}


def main() -> None:
    """Run every size twice and print a line a night."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("job", nargs="*", help="more flags of jobs/embed.py, behind a --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        encoder = make_encoder(home / "stand-in", layers=1)
        for rows in options.rows:
            corpus, table = home / f"corpus{rows}", home / f"db{rows}/docs"
            write_corpus(corpus, rows)
            time.sleep(SETTLED_SECONDS)  # or the shards count as too young to be told apart
            walls = []
            for more in ([], [], ["--reread", "true"]):
                found = night(corpus, table, encoder, [*options.job, *more])
                walls.append(found["wall"])
                stages = {k: round(v, 1) for k, v in found["seconds"].items()}
                peaks = {k: round(v) for k, v in found["peaks"].items()}
                print(
                    f"{rows:,} rows: {found['embedded']:,} embedded, {found['unchanged']:,}"
                    f" unchanged in {walls[-1]:.1f} s\n  seconds {stages}\n  MiB {peaks}",
                    flush=True,
                )
            print(
                f"  the second night took 1/{walls[0] / walls[1]:.1f} of the first,"
                f" 1/{walls[0] / walls[2]:.1f} where it had to read all shards again",
                flush=True,
            )


if __name__ == "__main__":
    main()
