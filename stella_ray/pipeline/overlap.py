"""Training files against an index of evaluation texts, a task for each file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from stella_ray.learn.overlap import OverlapIndex, Touch, touches
from stella_ray.learn.reading import Example, read_examples
from stella_ray.learn.sources import ExampleSource
from stella_ray.pipeline.cluster import keep_ray_data_quiet
from stella_ray.storage import StorageSettings

ROWS_PER_WORD = 8_192
"""Rows after which a task says what it has found so far: a long file is no standstill."""

ROWS_PER_GROUP = 4_096
"""Rows of a clean file that are in memory."""

BLOCK_BYTES = 1_024
"""Of Ray Data's blocks: less than one word of a task, so that none waits for the next."""

SNIPPET = 120
"""Characters of a text in an example."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How training files are compared."""

    source: ExampleSource
    threshold: float
    examples: int
    """Examples kept for each file, evaluation set and kind."""
    clean: str | None
    """Folder for the files without the touched rows."""
    storage: StorageSettings


def compare(files: Sequence[str], index: OverlapIndex, how: Comparison) -> ray.data.Dataset:
    """What each training file has in common with the evaluation sets: `compare_files`'s words."""
    items = [{"number": i, "path": path} for i, path in enumerate(files)]
    tasks = ray.data.from_items(items, override_num_blocks=len(items))
    return tasks.map_batches(
        compare_files,
        fn_kwargs={"index": ray.put(index), "how": how},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
    )


def compare_files(block: pa.Table, index: Any, how: Comparison) -> Iterator[pa.Table]:
    """Yield tables of one row: the file's number, and as JSON what was found since the last one.

    Raises:
        CorpusError: a training row that isn't right, with file and number.
    """
    keep_ray_data_quiet()
    if isinstance(index, ray.ObjectRef):
        index = ray.get(index)
    for item in block.to_pylist():
        for word in compare_file(item["number"], item["path"], index, how):
            told = json.dumps(word, ensure_ascii=False)
            yield pa.table({"file": [item["number"]], "told": [told]})


def compare_file(
    number: int, path: str, index: OverlapIndex, how: Comparison
) -> Iterator[dict[str, Any]]:
    """Yield rows, touched rows, counts by evaluation set and kind, and examples; sums of a part."""
    shown: Counter[tuple[int, str]] = Counter()
    with CleanFile(number, path, how) as clean:
        word = _word()
        for row, example in enumerate(read_examples(path, how.source, how.storage)):
            found = list(touches(example, index, how.threshold))
            word["rows"] += 1
            word["touched"] += bool(found)
            for touch in found:
                _count(word, touch, row, shown, how.examples)
            if not found:
                clean.add(example)
            if word["rows"] == ROWS_PER_WORD:
                yield word
                word = _word()
        yield {**word, "clean": clean.close()}


def _word() -> dict[str, Any]:
    return {"rows": 0, "touched": 0, "counts": {}, "examples": [], "clean": None}


def _count(
    word: dict[str, Any], touch: Touch, row: int, shown: Counter[tuple[int, str]], most: int
) -> None:
    counts = word["counts"].setdefault(str(touch.set), {})
    for kind in touch.kinds:
        counts[kind] = counts.get(kind, 0) + 1
    for kind, text, match in touch.matches:
        if shown[touch.set, kind] < most:
            shown[touch.set, kind] += 1
            own = {"set": touch.set, "kind": kind, "row": row, "text": text[:SNIPPET]}
            word["examples"].append(own | {"share": round(match.share, 3), "found": match.text})


class CleanFile:
    """A training file without its touched rows, parquet, with the columns that the source names.

    Without a folder to write to it does nothing. The file is made with its first row: one of which
    nothing is left isn't written, since readers refuse an empty one.
    """

    def __init__(self, number: int, path: str, how: Comparison) -> None:
        self.source = how.source
        stem = Path(path).name.partition(".")[0]
        self.name = f"{number:05}-{stem}.parquet"
        self.place = Path(how.clean) / self.name if how.clean else None
        self.schema = clean_schema(how.source)
        self._rows: list[dict[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None

    def add(self, example: Example) -> None:
        """Keep a row."""
        if self.place is None:
            return
        self._rows.append(_cells(example, self.source))
        if len(self._rows) == ROWS_PER_GROUP:
            self._write()

    def close(self) -> str | None:
        """Finish the file; its name, if there is one."""
        if self.place is None:
            return None
        if self._rows:
            self._write()
        if self._writer is None:
            return None
        self._writer.close()
        return self.name

    def _write(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(str(self.place), self.schema, compression="zstd")
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self.schema))
        self._rows = []

    def __enter__(self) -> CleanFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if error is not None and self._writer is not None:
            self._writer.close()


def clean_schema(source: ExampleSource) -> pa.Schema:
    """The columns that the source reads, by its own names and as it reads them."""
    fields = [(source.query_column, pa.string()), (source.passage_column, pa.string())]
    if source.kind != "pairs":
        fields += [(source.label_column, pa.string() if source.kind == "nli" else pa.float64())]
    elif source.negatives_column:
        one = source.negatives_are == "text"
        fields += [(source.negatives_column, pa.string() if one else pa.list_(pa.string()))]
    return pa.schema(fields)


def _cells(example: Example, source: ExampleSource) -> dict[str, Any]:
    cells: dict[str, Any] = {
        source.query_column: example.query,
        source.passage_column: example.passage,
    }
    if source.kind == "nli":
        cells[source.label_column] = source.label_order[int(example.label)]
    elif source.kind == "scored":
        cells[source.label_column] = example.label
    elif source.negatives_column and source.negatives_are == "text":
        cells[source.negatives_column] = next(iter(example.negatives), None)
    elif source.negatives_column:
        cells[source.negatives_column] = example.negatives
    return cells
