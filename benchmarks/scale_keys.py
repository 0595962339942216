"""How do the driver's memory and seconds grow with the keys and the fragments of a table?

Synthetic tables of vectors of 8 numbers, so that only keys count.  Every line is measured in a
process of its own; memory is what a step adds to the process at its peak, and what stays.

    python -m benchmarks.scale_keys [--keys 10000 100000] [--fragments 10 100 1000]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from stella_ray.pipeline.ledger import Ledger
from stella_ray.receipts import RECEIPT
from stella_ray.rows import KEY_BYTES, table_schema
from stella_ray.table.fragments import write_rows
from stella_ray.table.vectors import VectorTable

ROOT = Path(__file__).parents[1]
DIM = 8
SCHEMA = table_schema([], False, DIM, pa.float32())
ROWS_PER_FRAGMENT = 1_000_000
ROWS_PER_RECEIPT = 8_192
ASKED = 1_000_000
NEW_SHARE = 10
"""One row in so many is new to the simulated run; the others are in the table already."""

Line = dict[str, float]


# ---------------------------------------------------------------- the table


def random_keys(count: int, seed: int) -> np.ndarray:
    """Keys as a hash makes them, `S16` [count]."""
    return np.frombuffer(np.random.default_rng(seed).bytes(count * KEY_BYTES), f"S{KEY_BYTES}")


def block(keys: np.ndarray) -> pa.Table:
    """Rows of the table's schema with these keys and nothing else of interest."""
    count = len(keys)
    columns: dict[str, pa.Array] = {
        "doc_id": pa.array(np.arange(count).astype(str)),
        "vector": pa.FixedSizeListArray.from_arrays(np.zeros(count * DIM, np.float32), DIM),
        "row_key": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(KEY_BYTES), count, [None, pa.py_buffer(keys)]
        ),
    }
    arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in SCHEMA]
    return pa.table(arrays, schema=SCHEMA)


def fill(uri: str, rows: int, rows_per_fragment: int) -> Line:
    """Make a table of so many rows with one commit."""
    table = VectorTable.create(uri, SCHEMA, {"name": "synthetic", "digest": "0"})
    starts = range(0, rows, rows_per_fragment)
    fragments = [
        text
        for seed, start in enumerate(starts)
        for text in write_rows(block(random_keys(min(rows_per_fragment, rows - start), seed)), uri)
    ]
    table.commit(fragments)
    return {}


# ---------------------------------------------------------------- the measures


class Step:
    """Seconds and MiB of a `with` block; Linux alone lets the peak be set back."""

    def __enter__(self) -> Step:
        self._before = psutil.Process().memory_info().rss
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._begun = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._begun
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak = int(status.split("VmHWM:")[1].split()[0]) << 10
        self.peak = (peak - self._before) / 2**20
        self.kept = (psutil.Process().memory_info().rss - self._before) / 2**20


def measure_keys(uri: str) -> Line:
    """Read the keys of a table; ask for a million others and known ones."""
    table = VectorTable.open(uri)
    with Step() as read:
        known = table.known()
    misses = random_keys(ASKED // 2, seed=10**6)
    hits = np.random.default_rng(0).choice(known.keys, ASKED - len(misses))
    asked = np.random.default_rng(1).permutation(np.concatenate([hits, misses]))
    with Step() as find:
        found = known.find(asked)
    assert np.count_nonzero(found >= 0) == len(hits)
    return {
        "keys": len(known.keys),
        "read, s": read.seconds,
        "peak, MiB": read.peak,
        "kept, MiB": read.kept,
        "find a million, s": find.seconds,
        "its peak, MiB": find.peak,
    }


def measure_ledger(uri: str) -> Line:
    """Keep the books of a night that finds most rows unchanged."""
    known = VectorTable.open(uri).known()
    rows = len(known.keys)
    place = np.random.default_rng(0).permutation(rows)
    new, seen = random_keys(rows // NEW_SHARE, seed=10**6), place[rows // NEW_SHARE :]
    count = -(-rows // ROWS_PER_RECEIPT)
    receipts = [
        receipt(seen=ours, fresh_keys=fresh)
        for ours, fresh in zip(np.array_split(seen, count), np.array_split(new, count), strict=True)
    ]
    with Step() as add:
        ledger = Ledger(known)
        for one in receipts:
            ledger.add(one)
    with Step() as expected:
        assert len(ledger.expected()) == rows
    with Step() as doomed:
        assert len(ledger.doomed(known)) == rows - len(seen)
    steps = {"add": add, "expected": expected, "doomed": doomed}
    line: Line = {"keys": rows}
    line |= {f"{name}, s per million": s.seconds / rows * 1e6 for name, s in steps.items()}
    return line | {f"{name}, peak MiB": s.peak for name, s in steps.items()}


def receipt(**arrays: np.ndarray) -> pa.Table:
    """A receipt of one block that says nothing but this."""
    empty = {pa.types.is_list: [], pa.types.is_binary: b""}
    row: dict[str, Any] = {
        field.name: next((value for is_it, value in empty.items() if is_it(field.type)), 0)
        for field in RECEIPT
    }
    row |= {name: np.ascontiguousarray(array).tobytes() for name, array in arrays.items()}
    return pa.Table.from_pylist([row], schema=RECEIPT)


def measure_fragments(uri: str) -> Line:
    """Open a table of many fragments, list its keys, and add one row to it, five times."""
    times: dict[str, list[float]] = {"open, ms": [], "list keys, ms": [], "commit, ms": []}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        value = call()
        times[name].append((time.perf_counter() - begun) * 1_000)
        return value

    fragments = len(VectorTable.open(uri).dataset.get_fragments())
    for number in range(5):
        table = timed("open, ms", lambda: VectorTable.open(uri))
        timed("list keys, ms", table.known)
        row = write_rows(block(random_keys(1, seed=10**6 + number)), uri)
        timed("commit, ms", lambda table=table, row=row: table.commit(row))
    manifest = max(path.stat().st_size for path in (Path(uri) / "_versions").iterdir())
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    return {"fragments": fragments, **medians, "manifest, KiB": manifest / 1024}


# ---------------------------------------------------------------- the run

MEASURES: dict[str, Callable[[str], Line]] = {
    "keys": measure_keys,
    "ledger": measure_ledger,
    "fragments": measure_fragments,
}


def apart(*words: str) -> Line:
    """Run one step of this file in a new process."""
    command = [sys.executable, "-m", "benchmarks.scale_keys", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, encoding="utf-8")
    line: Line = json.loads(done.stdout.splitlines()[-1])
    return line


def show(lines: list[Line]) -> None:
    """Print a markdown table."""
    print("\n| " + " | ".join(lines[0]) + " |\n" + "|---" * len(lines[0]) + "|")
    for line in lines:
        cells = [f"{v:,}" if isinstance(v, int) else f"{v:,.3g}" if v < 100 else f"{v:,.0f}"
                 for v in line.values()]  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Fill tables, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--keys", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--fragments", type=int, nargs="*", default=[10, 100, 1_000])
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        name, uri, *sizes = options.step
        line = fill(uri, *map(int, sizes)) if name == "fill" else MEASURES[name](uri)
        print(json.dumps(line))
        return
    for names, sizes, per_fragment in (
        (("keys", "ledger"), options.keys, ROWS_PER_FRAGMENT),
        (("fragments",), options.fragments, 1),
    ):
        lines: dict[str, list[Line]] = {name: [] for name in names}
        for size in sizes:
            with tempfile.TemporaryDirectory() as scratch:
                uri = f"{scratch}/docs.lance"
                apart("--step", "fill", uri, str(size), str(per_fragment))
                for name in names:
                    lines[name].append(apart("--step", name, uri))
        for name in names if sizes else ():
            show(lines[name])


if __name__ == "__main__":
    main()
