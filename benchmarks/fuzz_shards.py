"""The readers of shards that benchmarks.fuzz feeds, and what must hold whatever they are fed.

A reader yields rows and rejects that add up, or raises a StellaError of one line. Each function
makes its inputs from a seeded generator, feeds them, and enters what became of them in a `Tally`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import random
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.mutations import ANY, LINE, bomb, flip, mutated, packed, parquet_file
from stella_ray.errors import StellaError
from stella_ray.pipeline.cells import CorpusColumns
from stella_ray.pipeline.judge import sound_rows
from stella_ray.pipeline.kept import kept_fields
from stella_ray.pipeline.shards import Shard, read_shard
from stella_ray.rows import row_keys

SECONDS = 20
"""For one input or batch of lines; longer counts as a hang."""

LINES = 200
"""Bad lines of a shard, a good one behind each."""

BOMBS = 3_000
"""One input of so many is a bomb."""

KEPT = [
    pa.field("year", pa.int64()), pa.field("tag", pa.string()), pa.field("at", pa.timestamp("us")),
    pa.field("parts", pa.list_(pa.string())),
]  # fmt: skip
"""Kept columns; csv has no lists."""


@dataclass
class Tally:
    """What became of inputs: rows that are sound, rows rejected, files refused, faults of ours."""

    inputs: int = 0
    rows: int = 0
    rejects: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Enter another's."""
        self.inputs += other.inputs
        self.rows += other.rows
        self.rejects += other.rejects
        self.refused += other.refused
        self.faults += other.faults


class Hang(BaseException):
    """An input took too long."""


def _hang(*_: object) -> None:
    raise Hang(f"more than {SECONDS} s")


@contextlib.contextmanager
def watched(tally: Tally, path: Path, inputs: int) -> Iterator[None]:
    """Count the inputs, and whatever a reader may not do with one; that file is kept."""
    signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    tally.inputs += inputs
    try:
        yield
    except StellaError as error:
        tally.refused += 1
        said = str(error)
        if not said.isascii() and not said.replace("\u3000", " ").isprintable():
            fault = "its message isn't printable"
        elif len(said.splitlines()) != 1 or len(said) > 4_000:
            fault = f"its message has {len(said.splitlines())} lines, {len(said)} characters"
        else:
            return
        tally.faults.append(f"{_kept(path)}: {type(error).__name__}: {fault}: {said!r:.200}")
    except (Exception, Hang) as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(at.filename).name}:{at.lineno}"
        tally.faults.append(f"{_kept(path)}: {type(error).__name__} at {place}: {error!s:.200}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _kept(path: Path) -> Path:
    """The input under a name that stays."""
    number = len(list(path.parent.glob("fault-*")))
    kept = path.with_name(f"fault-{number}-{path.name}")
    kept.write_bytes(path.read_bytes())
    return kept


def read(dice: random.Random, path: Path, window_rows: int, tally: Tally) -> pa.Table:
    """All rows of a shard; those that are sound and those that are rejected are counted."""
    shard = Shard(str(path), path.stat().st_size)
    fields = dice.choice([[], KEPT[: 3 if ".csv" in path.name else 4]])
    columns = CorpusColumns(kept=tuple(one.name for one in fields))
    if dice.random() < 0.3:  # of the types that its first lines have
        fields = kept_fields([shard], columns, None)
    out = []
    for window in read_shard(shard, 7, columns, fields, window_rows):
        window.validate(full=True)
        assert 0 < len(window) <= window_rows
        sound = len(sound_rows(window))
        row_keys(window, columns.kept, "digest")
        tally.rows += sound
        tally.rejects += len(window) - sound
        out.append(window.select(["row", "doc_id", "text"]))
    return pa.concat_tables(out)


# ---------------------------------------------------------------- shards


def a_row(dice: random.Random, number: int) -> dict[str, Any]:
    """A good row."""
    text = (
        "".join(dice.choices("的一是不了人我在有他这，。\n\"'a, ", k=dice.randrange(1, 40))) + "。"
    )
    return {
        "id": dice.choice([number, f"doc-{number}"]), "text": text,
        "year": dice.randrange(1900, 2100), "tag": dice.choice(["甲", "乙", None]),
        "at": "2024-01-02", "parts": ["a", "二"],
    }  # fmt: skip


def jsonl_lines(dice: random.Random, path: Path, count: int) -> Tally:
    """Bad lines, each between two good ones that must come through as they are."""
    tally = Tally()
    for start in range(0, count, LINES):
        wanted = min(LINES, count - start)
        lines, good = [], {}
        for i in range(wanted):
            bad = mutated(dice, json.dumps(a_row(dice, i), ensure_ascii=False).encode(), LINE)
            row = a_row(dice, i) | {"id": f"good-{i}"}
            good[row["id"]] = row["text"]
            lines += [bad, json.dumps(row, ensure_ascii=dice.random() < 0.5).encode()]
        data = b"\n".join(lines)
        path.write_bytes(data)
        # Lines end at \n; those of nothing but blanks are none, nor is a byte order mark.
        all_lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        expected = [number for number, line in enumerate(all_lines) if line.strip()]
        with watched(tally, path, wanted):
            found = read(dice, path, dice.choice([3, 50, 8_192]), tally)
            assert found["row"].to_pylist() == expected
            ids, texts = found["doc_id"].to_pylist(), found["text"].to_pylist()
            there = dict(zip(ids, texts, strict=True))
            assert all(there[name] == text for name, text in good.items())
            assert sum(str(name).startswith("good-") for name in ids) >= len(good)
    return tally


def csv_rows(dice: random.Random, path: Path, count: int) -> Tally:
    """Bad rows; the rows must be those that the csv module finds in all of the text at once."""
    tally = Tally()
    for start in range(0, count, LINES):
        wanted = min(LINES, count - start)
        quotes = dice.random() < 0.3
        lines = [b"id,text,year,tag,at,parts"]
        for i in range(wanted):
            bad = mutated(dice, csv_line(a_row(dice, i)), ANY)
            if not quotes:  # one open quote takes the rest of the shard with it
                bad = bad.replace(b'"', b"")
            lines += [bad, csv_line(a_row(dice, i))]
        data = b"\n".join(lines)
        path.write_bytes(data)
        expected, whole = _csv_cells(data)
        with watched(tally, path, wanted):
            before = tally.rows + tally.rejects
            try:
                found = read(dice, path, dice.choice([3, 50, 8_192]), tally)
                assert whole
                assert found["row"].to_pylist() == list(range(len(expected)))
                for cells, doc_id, text in zip(
                    expected, *found.select([1, 2]).to_pydict().values(), strict=True
                ):
                    said = cells[0].encode(errors="replace").decode()  # what isn't UTF-8
                    assert text is None or [doc_id, text] == [said or None, (*cells, "")[1]]
            finally:
                assert tally.rows + tally.rejects - before == len(expected)
    return tally


def csv_line(row: dict[str, Any]) -> bytes:
    """A row as csv, lists as JSON."""
    sink = io.StringIO()
    csv.writer(sink, lineterminator="").writerow(
        [json.dumps(v) if isinstance(v, list) else v for v in row.values()]
    )
    return sink.getvalue().encode()


def _csv_cells(data: bytes) -> tuple[list[list[str]], bool]:
    """The rows behind the header up to the first fault, and whether there is none."""
    text = data.decode("utf-8-sig", "surrogateescape")
    rows = []
    try:
        for cells in csv.reader(io.StringIO(text, newline=""), strict=True):
            rows += [cells] if cells else []
    except csv.Error:
        return rows[1:], False
    return rows[1:], True


def whole_file(ending: str) -> Callable[[random.Random, Path, int], Tally]:
    """Files of a few rows, changed anywhere: before they are packed, or after."""
    form, compression = (
        ending.split(".")[1],
        ending[ending.find(".", 1) :] if ending.count(".") > 1 else "",
    )

    def feed(dice: random.Random, path: Path, count: int) -> Tally:
        tally = Tally()
        for _ in range(count):
            rows = [a_row(dice, i) for i in range(dice.choice([1, 3, 12]))]
            if form == "csv":
                data = b"\r\n".join([b"id,text,year,tag,at,parts", *map(csv_line, rows)])
            else:
                data = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()
            if compression and dice.random() < 0.5:
                data = mutated(dice, packed(data, compression), ANY)
            else:
                data = packed(mutated(dice, data, LINE if form != "csv" else ANY), compression)
            if compression and not dice.randrange(BOMBS):
                data = bomb(compression, 128)
            path.write_bytes(data)
            with watched(tally, path, 1):
                found = read(dice, path, dice.choice([2, 100]), tally)
                numbers = found["row"].to_pylist()
                assert numbers == sorted(set(numbers))
        return tally

    return feed


def parquet(dice: random.Random, path: Path, count: int) -> Tally:
    """Files changed anywhere, or of columns of other types; every row that the footer counts."""
    tally = Tally()
    for _ in range(count):
        rows = [a_row(dice, i) for i in range(dice.choice([1, 7, 40]))]
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
        columns["id"] = (
            pa.array(map(str, columns["id"])) if dice.random() < 0.5 else list(range(len(rows)))
        )
        if dice.random() < 0.3:
            columns["at"] = pa.array(
                dice.choices([0, 2**62, -(2**62), None], k=len(rows)),
                pa.timestamp(dice.choice(["ms", "us", "ns"])),
            )
        if dice.random() < 0.2:
            kind = dice.choice(
                [
                    pa.binary(),
                    pa.int64(),
                    pa.list_(pa.string()),
                    pa.null(),
                    pa.float16(),
                    pa.bool_(),
                ]
            )
            columns[dice.choice(["id", "text", "year", "tag"])] = pa.nulls(len(rows), kind)
        data = parquet_file(dice, columns)
        if dice.random() < 0.9:
            data = mutated(dice, data, (*ANY, flip, flip, flip))
        path.write_bytes(data)
        with watched(tally, path, 1):
            found = read(dice, path, dice.choice([2, 100]), tally)
            assert found["row"].to_pylist() == list(range(len(found)))
    return tally
