"""What the publishing gate lets through, and what it says of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stella_ray.errors import IncompleteRun, SettingsError
from stella_ray.rows import chunk_keys, key_array, table_schema
from stella_ray.table import vector_index
from stella_ray.table.fragments import write_rows
from stella_ray.table.gate import GateCheck, GateSettings, check_gate, refuse
from stella_ray.table.vectors import VectorTable
from tests.table.conftest import (
    DIM,
    ENCODER,
    SCHEMA,
    TITLE,
    add,
    addresses_of,
    numbered,
    rows,
    unit_vectors,
)

NO_SAMPLES = (np.empty(0, "S16"), np.empty((0, DIM), np.float32))
CHUNKED = table_schema(TITLE, True, DIM, pa.float32(), chunked=True)


def keys(ids: Sequence[str]) -> np.ndarray:
    return np.unique(key_array(rows(ids)))


def vectors_of(ids: Sequence[str]) -> np.ndarray:
    """In the order of `keys(ids)`."""
    order = np.argsort(key_array(rows(ids)))
    return unit_vectors(ids)[order]


def look(
    table: VectorTable,
    expected: np.ndarray | None = None,
    samples: tuple[np.ndarray, np.ndarray] = NO_SAMPLES,
    published: int | None = None,
    settings: GateSettings | None = None,
) -> dict[str, GateCheck]:
    """Every check by its name; without `expected`, what is there is what was planned."""
    planned = np.unique(table.known().keys) if expected is None else expected
    checks = check_gate(table, planned, samples, settings or GateSettings(), published)
    return {check.name: check for check in checks}


def failed(checks: dict[str, GateCheck]) -> list[str]:
    return [name for name, check in checks.items() if not check.passed]


def of_type(folder: Path, schema: pa.Schema) -> VectorTable:
    return VectorTable.create(str(folder / "other.lance"), schema, ENCODER)


def test_a_table_of_exactly_the_planned_rows_passes_every_check(docs: VectorTable) -> None:
    add(docs, numbered(2_000))
    add(docs, ["late"])
    docs.commit([], addresses_of(docs, ["d7"]))
    planned = ["late", *(i for i in numbered(2_000) if i != "d7")]
    checks = look(docs, keys(planned), (keys(["d3", "late"]), vectors_of(["d3", "late"])))
    assert failed(checks) == []
    assert {name: check.found for name, check in checks.items()} == {
        "rows": "2,000 rows",
        "documents": "2,000 documents",
        "vectors": "2,000 new rows, all unit vectors",
        "index": "no index",
        "recall": "no vector index",
        "encoding": "2 rows, at least 1.000000",
    }
    refuse(docs, list(checks.values()))


def test_an_empty_table_passes_if_nothing_was_planned(docs: VectorTable) -> None:
    assert failed(look(docs, keys([]))) == []


@pytest.mark.parametrize(
    ("there", "planned", "counts"),
    [
        (["a"], ["a", "b", "c"], "1 rows: 2 missing, 0 foreign, 0 doubled"),
        (["a", "b", "c"], ["a"], "3 rows: 0 missing, 2 foreign, 0 doubled"),
        (["a", "a", "b", "a"], ["a", "b"], "4 rows: 0 missing, 0 foreign, 2 doubled"),
        (["a", "a", "c"], ["a", "b"], "3 rows: 1 missing, 1 foreign, 1 doubled"),
        ([], ["a"], "0 rows: 1 missing, 0 foreign, 0 doubled"),
        (["a"], [], "1 rows: 0 missing, 1 foreign, 0 doubled"),
        (numbered(1_500), [], "1,500 rows: 0 missing, 1,500 foreign, 0 doubled"),
    ],
)
def test_missing_foreign_and_doubled_rows_are_counted_and_refused(
    docs: VectorTable, there: list[str], planned: list[str], counts: str
) -> None:
    if there:
        add(docs, there)
    check = look(docs, keys(planned))["rows"]
    assert check == GateCheck("rows", False, counts, f"{len(planned):,} rows")


def test_a_changed_text_or_title_is_another_row(docs: VectorTable) -> None:
    add(docs, ["a", "b"], texts=["text of a", "changed"], titles=["changed", "title of b"])
    assert look(docs, keys(["a", "b"]))["rows"].found == ("2 rows: 2 missing, 2 foreign, 0 doubled")


def test_an_id_with_two_texts_is_refused_though_its_keys_were_planned(docs: VectorTable) -> None:
    add(docs, numbered(50))
    add(docs, ["d7", "d9"], texts=["another text", "text of d9"], titles=["title of d7", "other"])
    checks = look(docs)
    assert failed(checks) == ["documents"]
    found = checks["documents"].found
    assert found.startswith("2 ids with several texts or wrong chunks, as [")
    assert "'d7'" in found
    assert "'d9'" in found


def test_two_ids_that_share_their_56_bits_are_two_documents(docs: VectorTable) -> None:
    block = rows(["one", "other", "third"])
    forged = key_array(block).copy()
    # As if both ids had hashed to the same seven bytes.
    forged[1] = forged[0][:7] + forged[1].ljust(16, b"\0")[7:]
    at = block.schema.get_field_index("row_key")
    block = block.set_column(at, SCHEMA.field("row_key"), pa.array(forged.tolist(), pa.binary(16)))
    docs.commit(write_rows(block, docs.uri))
    assert failed(look(docs)) == []


def chunk_rows(doc_id: str, numbers: Sequence[int], chunks: int, text: str = "text") -> pa.Table:
    """Rows of a chunked document with these numbers."""
    block = rows([doc_id] * len(numbers), texts=[text] * len(numbers), schema=SCHEMA)
    made = chunk_keys(key_array(block), np.array(numbers))
    columns = {name: block[name] for name in SCHEMA.names} | {
        "row_key": pa.array([key.ljust(16, b"\0") for key in made.tolist()], pa.binary(16)),
        "chunk": pa.array(numbers, pa.int32()),
        "chunks": pa.array([chunks] * len(numbers), pa.int32()),
        "chunk_start": pa.array([0] * len(numbers), pa.int32()),
        "chunk_end": pa.array([1] * len(numbers), pa.int32()),
    }
    return pa.table({name: columns[name] for name in CHUNKED.names}, schema=CHUNKED)


@pytest.mark.parametrize(
    ("parts", "wrong"),
    [
        ([("a", [2, 0, 1], 3), ("b", [0], 1), ("c", [1, 0], 2)], []),
        ([("a", [0, 1, 2], 3), ("a", [], 3)], []),
        ([("a", [0, 1, 3], 4), ("b", [0], 1)], ["a"]),
        ([("a", [1, 2], 2), ("b", [0, 1], 2)], ["a"]),
        ([("a", [0, 1, 2], 2), ("b", [0, 1], 2)], ["a"]),
        ([("a", [0, 1, 1], 3), ("b", [0, 1], 2)], ["a"]),
        ([("a", [0], 2), ("a", [1], 3), ("b", [0], 0)], ["a", "b"]),
    ],
)
def test_a_documents_chunks_must_be_there_each_once(
    tmp_path: Path, parts: list[tuple[str, list[int], int]], wrong: list[str]
) -> None:
    table = of_type(tmp_path, CHUNKED)
    for doc_id, numbers, chunks in parts:
        table.commit(write_rows(chunk_rows(doc_id, numbers, chunks), table.uri))
    check = look(table)["documents"]
    assert check.passed == (not wrong)
    for doc_id in wrong:
        assert f"'{doc_id}'" in check.found
    whole = {doc_id for doc_id, numbers, _ in parts if numbers}
    assert check.found.startswith(f"{len(wrong)} ids" if wrong else f"{len(whole)} documents")


def test_chunks_of_two_texts_under_one_id_are_refused(tmp_path: Path) -> None:
    table = of_type(tmp_path, CHUNKED)
    for text in ("old", "new"):
        table.commit(write_rows(chunk_rows("a", [0, 1], 2, text), table.uri))
    table.commit(write_rows(chunk_rows("b", [0, 1], 2), table.uri))
    assert look(table)["documents"].found == ("1 ids with several texts or wrong chunks, as ['a']")


@pytest.mark.parametrize("kind", [pa.float32(), pa.float16()])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, 0.99, 1.01, 3e38])
def test_a_vector_that_is_no_unit_vector_is_found_and_named(
    tmp_path: Path, kind: pa.DataType, bad: float
) -> None:
    schema = table_schema(TITLE, True, DIM, kind)
    table = of_type(tmp_path, schema)
    vectors = unit_vectors(numbered(20_000))
    if np.isfinite(bad) and bad < 2:
        vectors[12_345] *= bad
    else:
        vectors[12_345, 3] = bad if kind == pa.float32() or not np.isfinite(bad) else 6e4
    add(table, numbered(20_000), vectors=vectors, schema=schema)
    checks = look(table)
    assert failed(checks) == ["vectors"]
    assert checks["vectors"].found == "1 of 20,000 new rows hold no unit vector, 'd12345' for one"


@pytest.mark.parametrize("kind", [pa.float32(), pa.float16()])
def test_a_null_vector_and_a_null_number_are_found(tmp_path: Path, kind: pa.DataType) -> None:
    schema = table_schema(TITLE, True, DIM, kind)
    table = of_type(tmp_path, schema)
    block = rows(numbered(9), schema=schema)
    whole = block["vector"].combine_chunks()
    nulls = pa.FixedSizeListArray.from_arrays(
        whole.values, DIM, mask=pa.array([i == 4 for i in range(9)])
    )
    at = schema.get_field_index("vector")
    table.commit(write_rows(block.set_column(at, schema.field(at), nulls), table.uri))
    assert look(table)["vectors"].found == "1 of 9 new rows hold no unit vector, 'd4' for one"
    holes = [None if i == 13 else n for i, n in enumerate(whole.values.to_numpy().tolist())]
    other = of_type(tmp_path / "holes", schema)
    inner = pa.FixedSizeListArray.from_arrays(pa.array(holes, kind), DIM)
    other.commit(write_rows(block.set_column(at, schema.field(at), inner), other.uri))
    assert look(other)["vectors"].found == "1 of 9 new rows hold no unit vector, 'd1' for one"


def test_rounding_to_float16_is_no_wrong_length(tmp_path: Path) -> None:
    schema = table_schema(TITLE, True, DIM, pa.float16())
    table = of_type(tmp_path, schema)
    add(table, numbered(500), schema=schema)
    checks = look(table, samples=(keys(numbered(500)), vectors_of(numbered(500))))
    assert failed(checks) == []
    assert checks["encoding"].found.startswith("500 rows, at least ")


def test_only_data_files_that_the_published_version_lacks_are_read(docs: VectorTable) -> None:
    add(docs, numbered(100), vectors=np.zeros((100, DIM), np.float32))
    published = docs.version
    add(docs, numbered(30, first=100))
    docs.commit([], addresses_of(docs, ["d3", "d110"]))
    assert look(docs, published=published)["vectors"].found == "29 new rows, all unit vectors"
    assert look(docs, published=docs.version)["vectors"].found == "0 new rows, all unit vectors"
    assert look(docs)["vectors"].found == "99 of 128 new rows hold no unit vector, 'd0' for one"
    docs.dataset.optimize.compact_files()
    assert not look(docs, published=published)["vectors"].passed, "rewritten files are new"


def test_an_index_that_lacks_rows_is_refused(docs: VectorTable) -> None:
    add(docs, numbered(40))
    docs.dataset.create_scalar_index("doc_id", "BTREE", name="ids")
    assert look(docs)["index"] == GateCheck(
        "index", True, "ids is whole", "no row that an index lacks"
    )
    add(docs, numbered(7, first=40))
    assert look(docs)["index"].found == "ids lacks 7 rows"
    assert failed(look(docs)) == ["index"]


def test_a_recall_below_the_floor_is_refused(
    docs: VectorTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_index, "REFINE", 1)  # one byte a vector, never looked at again
    add(docs, numbered(3_000))
    docs.dataset.create_index(
        "vector", "IVF_PQ", metric="cosine", num_partitions=16, num_sub_vectors=1, name="vectors"
    )
    checks = look(docs)
    assert failed(checks) == ["recall"]
    assert float(checks["recall"].found) < 0.9
    assert checks["recall"].expected == "recall@10 of 0.9 or more"
    assert failed(look(docs, settings=GateSettings(min_recall=0.0))) == []


def test_a_stored_vector_unlike_the_one_encoded_alone_is_refused(docs: VectorTable) -> None:
    ids = numbered(60)
    add(docs, ids)
    sampled, alone = keys(ids), vectors_of(ids)
    alone[5] = np.roll(alone[5], 1)
    checks = look(docs, samples=(sampled, alone))
    assert failed(checks) == ["encoding"]
    assert checks["encoding"].found.startswith("1 of 60 rows are below, 'd")
    alone[5] = np.nan
    assert look(docs, samples=(sampled, alone))["encoding"].found.endswith("with nan")


def test_samples_whose_rows_are_gone_are_left_out(docs: VectorTable) -> None:
    add(docs, ["a", "b"])
    gone = (keys(["x", "y"]), np.ones((2, DIM), np.float32))
    assert look(docs, samples=gone)["encoding"] == GateCheck(
        "encoding", True, "no fresh row", "cosine of 0.999 or more to the same row alone in float32"
    )
    mixed = look(docs, samples=(keys(["a", "x"]), vectors_of(["a", "x"])))
    assert mixed["encoding"].found == "1 rows, at least 1.000000"


def test_every_failure_is_told_at_once_with_the_version_and_what_to_do(docs: VectorTable) -> None:
    add(docs, ["a", "b", "b"], vectors=np.ones((3, DIM), np.float32))
    checks = look(docs, keys(["a", "c"]))
    with pytest.raises(IncompleteRun) as caught:
        refuse(docs, list(checks.values()))
    line = str(caught.value)
    assert caught.value.exit_code == 6
    assert "\n" not in line
    assert line.startswith(
        f"{docs.uri} version 2 did not pass the publishing gate: rows: 3 rows: 1"
    )
    for words in (
        "(expected: 2 rows); documents: 1 ids", "; vectors: 3 of 3 new rows", "`live` is as it was",
        f"publish.py status --table {docs.uri}", "promote 2 --force true",
    ):  # fmt: skip
        assert words in line


def test_an_index_that_cant_be_read_is_a_failed_check_and_no_crash(docs: VectorTable) -> None:
    add(docs, numbered(300))
    docs.dataset.create_index("vector", "IVF_FLAT", metric="cosine", num_partitions=2, name="v")
    for path in Path(docs.uri).glob("_indices/*/*"):
        path.write_bytes(b"")
    checks = look(VectorTable.open(docs.uri))
    assert "recall" in failed(checks)
    assert checks["recall"].found.startswith("could not be checked: ")


@pytest.mark.parametrize(
    "knob",
    [{"min_recall": 1.1}, {"recall_queries": 0}, {"min_cosine": -1.0}, {"max_norm_error": 0.0}],
)
def test_a_floor_that_cant_hold_is_refused(knob: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=f"gate.{next(iter(knob))} "):
        GateSettings(**knob)  # type: ignore[arg-type]
