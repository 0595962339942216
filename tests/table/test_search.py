"""Searching gives what plain NumPy gives, from the published version alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stella_ray.errors import SettingsError, TableError
from stella_ray.rows import table_schema
from stella_ray.table.fragments import write_rows
from stella_ray.table.index import tidy
from stella_ray.table.publish import publish
from stella_ray.table.search import open_live, search
from stella_ray.table.vectors import VectorTable
from tests.table.conftest import (
    DIM,
    ENCODER,
    TITLE,
    add,
    addresses_of,
    numbered,
    rows,
    unit_vectors,
)

QUERY = unit_vectors(["the query"])[0]


def nearest(ids: list[str], query: np.ndarray = QUERY) -> list[tuple[str, float]]:
    """Brute force: ids with their cosine, best first."""
    scores = unit_vectors(ids, len(query)).astype(np.float64) @ query.astype(np.float64)
    return [(ids[i], float(scores[i])) for i in np.argsort(-scores)]


@pytest.fixture
def live(docs: VectorTable) -> VectorTable:
    """Six hundred published rows in three fragments; every tenth is of the title 天文."""
    for start in range(0, 600, 200):
        ids = numbered(200, start)
        add(docs, ids, titles=["天文" if int(i[1:]) % 10 == 0 else "地理" for i in ids])
    publish(docs, "r")
    return open_live(docs.uri)


@pytest.mark.parametrize(
    ("number", "tolerance"), [(pa.float32(), 1e-6), (pa.float16(), 2e-3)], ids=str
)
def test_hits_and_scores_are_those_of_brute_force(
    tmp_path: Path, number: pa.DataType, tolerance: float
) -> None:
    schema = table_schema(TITLE, True, DIM, number)
    table = VectorTable.create(f"{tmp_path}/t.lance", schema, ENCODER)
    ids = numbered(1_000)
    add(table, ids[:400], schema=schema)
    add(table, ids[400:], schema=schema)
    vectors = table.dataset.to_table(columns=["vector"])["vector"].combine_chunks().flatten()
    stored = vectors.to_numpy().reshape(-1, DIM).astype(np.float64)
    for seed in range(5):
        query = unit_vectors([f"query {seed}"])[0]
        # Lance casts the query to the type of the column.
        asked = query.astype(number.to_pandas_dtype()).astype(np.float64)
        scores = stored @ asked / np.linalg.norm(stored, axis=1) / np.linalg.norm(asked)
        hits = search(table, vector=query, limit=20)
        assert [hit["doc_id"] for hit in hits] == [ids[i] for i in np.argsort(-scores)[:20]]
        assert [hit["score"] for hit in hits] == pytest.approx(
            np.sort(scores)[::-1][:20].tolist(), abs=1e-6
        )
        exact = dict(nearest(ids, query))
        assert all(abs(hit["score"] - exact[hit["doc_id"]]) <= tolerance for hit in hits)


def test_a_rows_own_vector_finds_it_first_with_score_one(live: VectorTable) -> None:
    hit = search(live, vector=unit_vectors(["d123"])[0], limit=1)[0]
    assert (hit["doc_id"], hit["score"]) == ("d123", pytest.approx(1.0, abs=1e-6))


def test_the_opposite_vector_is_last_with_score_minus_one(live: VectorTable) -> None:
    hit = search(live, vector=-unit_vectors(["d123"])[0], limit=600)[-1]
    assert (hit["doc_id"], hit["score"]) == ("d123", pytest.approx(-1.0, abs=1e-6))


def test_a_hit_holds_what_people_read_and_none_of_the_plumbing(live: VectorTable) -> None:
    hit = search(live, vector=QUERY, limit=1)[0]
    assert set(hit) == {"doc_id", "title", "text", "score"}
    assert hit["text"] == f"text of {hit['doc_id']}"


def test_a_table_without_text_has_hits_without_text(tmp_path: Path) -> None:
    schema = table_schema([], False, DIM, pa.float32())
    table = VectorTable.create(f"{tmp_path}/t.lance", schema, ENCODER)
    add(table, ["a"], schema=schema)
    assert set(search(table, vector=QUERY)[0]) == {"doc_id", "score"}


def test_a_limit_above_the_rows_gives_all_of_them(live: VectorTable) -> None:
    hits = search(live, vector=QUERY, limit=100_000)
    assert [hit["doc_id"] for hit in hits] == [doc_id for doc_id, _ in nearest(numbered(600))]


def test_an_empty_published_table_has_no_hits(docs: VectorTable) -> None:
    publish(docs, "r")
    assert search(open_live(docs.uri), vector=QUERY) == []


def test_a_filter_is_applied_before_the_nearest_are_taken(live: VectorTable) -> None:
    tens = nearest(numbered(600)[::10])
    hits = search(live, vector=QUERY, limit=5, filter="title = '天文'")
    assert [hit["doc_id"] for hit in hits] == [doc_id for doc_id, _ in tens[:5]]
    farthest = nearest(numbered(600))[-1][0]
    alone = search(live, vector=QUERY, limit=5, filter=f"doc_id = '{farthest}'")
    assert [hit["doc_id"] for hit in alone] == [farthest]
    assert search(live, vector=QUERY, filter="title = 'nowhere'") == []


def test_a_filter_over_an_indexed_column_finds_the_same(docs: VectorTable) -> None:
    add(docs, numbered(300))
    wanted = "doc_id IN ('d1', 'd2', 'd299') AND text LIKE '%2%'"
    before = search(docs, vector=QUERY, filter=wanted)
    tidy(docs)
    assert search(docs, vector=QUERY, filter=wanted) == before
    assert {hit["doc_id"] for hit in before} == {"d2", "d299"}


@pytest.mark.parametrize("text", ["it's", 'say "hi"', "100% of_it", "a\nb", "\\", "'; --", "🙂"])
def test_a_text_with_quotes_can_be_filtered_by(docs: VectorTable, text: str) -> None:
    add(docs, ["odd", *numbered(20)], titles=[text, *["plain"] * 20])
    literal = text.replace("'", "''")
    hits = search(docs, vector=QUERY, limit=3, filter=f"title = '{literal}'")
    assert [(hit["doc_id"], hit["title"]) for hit in hits] == [("odd", text)]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("titel = '天文'", "No field named titel"),
        ("title = ", "Expected: an expression"),
        ("title = '天文", "Unterminated string literal"),
        ("title = 5", "could not convert to literal"),
        ("title", "does not return a boolean"),
        ("", "Expected: an expression"),
    ],
)
def test_a_filter_that_cannot_be_answered_is_one_line_with_the_columns_there_are(
    live: VectorTable, wrong: str, why: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        search(live, vector=QUERY, filter=wrong)
    line = str(caught.value)
    assert line.startswith(f"--filter {wrong!r} can't be answered (")
    assert why in line
    assert (
        "expected SQL over the columns ['doc_id', 'title', 'text'], as in \"title = '…'\"" in line
    )
    assert "\n" not in line
    assert ".rs:" not in line
    assert len(line) < 400


def test_a_query_of_another_size_is_refused(live: VectorTable) -> None:
    for wrong in (QUERY[:5], np.ones(9, np.float32), QUERY[None]):
        with pytest.raises(TableError, match="holds vectors of 8 numbers, the query's has the"):
            search(live, vector=wrong)


def test_nothing_is_live_before_the_first_publishing(docs: VectorTable) -> None:
    add(docs, ["a"])
    with pytest.raises(TableError) as caught:
        open_live(docs.uri)
    assert str(caught.value) == (
        f"{docs.uri}: nothing is published yet; finish a run of jobs/embed.py first"
    )


def test_a_missing_table_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no such table; write one with jobs/embed\.py"):
        open_live(f"{tmp_path}/nope.lance")


def test_rows_committed_after_publishing_are_not_found_and_deleted_ones_still_are(
    live: VectorTable,
) -> None:
    newest = VectorTable.open(live.uri)
    newest.commit([], addresses_of(newest, ["d5"]))
    add(newest, ["new"])
    for table in (live, open_live(live.uri)):
        found = [hit["doc_id"] for hit in search(table, vector=QUERY, limit=1_000)]
        assert sorted(found) == sorted(numbered(600))
    publish(newest, "s")
    found = [hit["doc_id"] for hit in search(open_live(live.uri), vector=QUERY, limit=1_000)]
    assert ("new" in found, "d5" in found, len(found)) == (True, False, 600)


def ids(hits: list[dict[str, Any]]) -> list[str]:
    return [hit["doc_id"] for hit in hits]


def test_equal_scores_are_in_the_order_of_their_ids_wherever_the_list_is_cut(
    docs: VectorTable,
) -> None:
    names = [f"d{i:03}" for i in np.random.default_rng(0).permutation(300)]
    for start in range(0, 300, 60):
        part = names[start : start + 60]
        add(docs, part, vectors=np.tile(QUERY, (60, 1)), texts=["水稻"] * 60)
    tidy(docs)
    expected = sorted(names)
    for limit in (1, 7, 100, 299):
        assert ids(search(docs, vector=QUERY, limit=limit)) == expected[:limit]
        assert ids(search(docs, text="水稻", limit=limit)) == expected[:limit]
        assert ids(search(docs, vector=QUERY, text="水稻", limit=limit)) == expected[:limit]


CHUNKED = table_schema(TITLE, True, DIM, pa.float32(), chunked=True)


def chunked_table(place: Path, chunks: dict[str, int], vectors: np.ndarray) -> VectorTable:
    """A table of documents with so many chunks; vectors in order, float32 [all chunks, dim]."""
    table = VectorTable.create(f"{place}/chunks.lance", CHUNKED, ENCODER)
    names = [doc for doc, count in chunks.items() for _ in range(count)]
    numbers = [number for count in chunks.values() for number in range(count)]
    texts = [f"{doc}的第{number}段" for doc, number in zip(names, numbers, strict=True)]
    plain = rows(names, texts=texts, vectors=vectors)
    own = {
        "chunk": numbers,
        "chunks": [chunks[doc] for doc in names],
        "chunk_start": [10 * number for number in numbers],
        "chunk_end": [10 * number + 10 for number in numbers],
    }
    columns = {**{name: plain.column(name) for name in plain.column_names}, **own}
    table.commit(
        write_rows(
            pa.table({name: columns[name] for name in CHUNKED.names}, schema=CHUNKED), table.uri
        )
    )
    return table


def test_the_best_chunk_stands_for_its_document_and_the_limit_counts_documents(
    tmp_path: Path,
) -> None:
    chunks = {"long": 500, "middle": 30, "short": 1, "other": 2}
    total = sum(chunks.values())
    dice = np.random.default_rng(3)
    vectors = QUERY + 0.01 * dice.standard_normal((total, DIM)).astype(np.float32)
    vectors[530:] = unit_vectors(["x", "y", "z"])  # all chunks of the first two are nearer
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    table = chunked_table(tmp_path, chunks, vectors)
    tidy(table)
    scores = vectors @ QUERY
    bounds = dict(zip(chunks, np.cumsum([0, *chunks.values()][:-1]), strict=True))
    best = {
        doc: int(np.argmax(scores[start : start + chunks[doc]])) for doc, start in bounds.items()
    }
    expected = sorted(chunks, key=lambda doc: -scores[bounds[doc] + best[doc]])
    for limit in (1, 2, 3, 4, 10):
        hits = search(table, vector=QUERY, limit=limit)
        assert ids(hits) == expected[:limit]
        for hit in hits:
            number = best[hit["doc_id"]]
            assert (hit["chunk"], hit["chunks"]) == (number, chunks[hit["doc_id"]])
            assert (hit["chunk_start"], hit["text"]) == (
                10 * number, f"{hit['doc_id']}的第{number}段",
            )  # fmt: skip
    found = search(table, text="long的第499段", limit=1)[0]
    assert (found["doc_id"], found["chunk"]) == ("long", 499)
    fused = search(table, vector=QUERY, text="的第0段", limit=10)
    assert sorted(ids(fused)) == sorted(chunks)
    assert ids(search(table, vector=QUERY, filter="chunk = 1")) == [
        doc for doc in sorted(
            ("long", "middle", "other"), key=lambda doc: -scores[bounds[doc] + 1]
        )
    ]  # fmt: skip
