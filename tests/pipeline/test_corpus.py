"""Which shards a corpus has, and which types its kept columns get."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stella_ray.errors import CorpusError, SettingsError
from stella_ray.pipeline.cells import CorpusColumns
from stella_ray.pipeline.corpus import (
    DatasetCorpus,
    ShardedCorpus,
    dataset_rows,
    find_shards,
    read_shards,
)
from stella_ray.pipeline.kept import kept_fields
from stella_ray.pipeline.shards import Shard, read_shard
from stella_ray.rows import RESERVED, source


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Make files below the test's folder; returns the folder."""

    def go(*names: str) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"id": 1, "text": "a"}\n', "utf-8")
        return tmp_path

    return go


def found(folder: Path, *corpus: str) -> list[str]:
    shards = find_shards([str(folder / item) for item in corpus])
    return [shard.path.removeprefix(f"{folder}/") for shard in shards]


# ---------------------------------------------------------------- shards


def test_a_folder_is_searched_to_its_depth_without_hidden_names(
    make: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = make(
        "s/b.jsonl", "s/a.csv", "s/deep/er/c.parquet", "s/d.ndjson.zst", "s/e.csv.gz",
        "s/_SUCCESS", "s/.b.jsonl.crc", "s/.hidden/x.jsonl", "s/_temporary/0/x.jsonl", "s/_x.csv",
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        paths = found(folder, "s")
    assert paths == ["s/a.csv", "s/b.jsonl", "s/d.ndjson.zst", "s/deep/er/c.parquet", "s/e.csv.gz"]
    assert caplog.messages == []
    assert found(folder, "s/") == paths


def test_other_files_in_a_folder_are_passed_over_with_a_word(
    make: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = make("s/a.jsonl", "s/readme.md", "s/z.txt")
    assert found(folder, "s") == ["s/a.jsonl"]
    (word,) = caplog.messages
    assert "passed over 2 files" in word
    assert "readme.md" in word


def test_a_folder_may_be_hidden_itself(make: Callable[..., Path]) -> None:
    assert found(make("_under/.x/a.jsonl"), "_under/.x") == ["_under/.x/a.jsonl"]


def test_a_file_a_glob_and_a_list_name_shards_in_the_order_of_their_paths(
    make: Callable[..., Path],
) -> None:
    folder = make("2/b.jsonl", "1/a.jsonl", "1/deep/c.csv", "1/deep/d.jsonl")
    assert found(folder, "2/b.jsonl") == ["2/b.jsonl"]
    assert found(folder, "*/?.jsonl") == ["1/a.jsonl", "2/b.jsonl"]
    assert found(folder, "1/**/*.jsonl") == ["1/a.jsonl", "1/deep/d.jsonl"]
    assert found(folder, "1/deep/[cx].*") == ["1/deep/c.csv"]
    assert found(folder, "2", "1/deep") == ["1/deep/c.csv", "1/deep/d.jsonl", "2/b.jsonl"]


def test_a_shard_that_is_named_several_times_counts_once(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make("s/a.jsonl", "s/deep/b.jsonl")
    (folder / "link.jsonl").symlink_to(folder / "s/a.jsonl")
    (folder / "link").symlink_to(folder / "s")
    names = ["s", "s/a.jsonl", "s/*.jsonl", "s/../s/a.jsonl", "s/deep", "link.jsonl", "link"]
    assert len(found(folder, *names)) == 2
    monkeypatch.chdir(folder)
    uri = f"file://{folder}/s/a.jsonl"
    assert [shard.path for shard in find_shards(["./s/a.jsonl", uri])] == [f"{folder}/s/a.jsonl"]


def test_sizes_are_the_files_own(make: Callable[..., Path]) -> None:
    folder = make("a.jsonl")
    assert find_shards([str(folder)]) == [Shard(str(folder / "a.jsonl"), 23)]


@pytest.mark.parametrize(
    "name",
    ["with space/a b.jsonl", "语料/第一.jsonl", "[x]/[1].jsonl", "a*b/?.jsonl", "#1/50%.csv"],
)
def test_names_may_hold_whatever_a_disk_allows(make: Callable[..., Path], name: str) -> None:
    folder = make(name)
    assert found(folder, name) == [name]
    assert found(folder, name.partition("/")[0]) == [name]
    assert found(folder, ".") == [f"./{name}"] or found(folder, "") == [name]


def test_a_corpus_may_lie_on_any_storage() -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/stella-corpus/a.jsonl", b'{"id": 1, "text": "a"}\n')
    store.pipe_file("/stella-corpus/deep/b.csv", b"id,text\n2,b\n")
    store.pipe_file("/stella-corpus/_temporary/c.csv", b"id,text\n2,b\n")
    shards = find_shards(["memory://stella-corpus"])
    assert [shard.path for shard in shards] == [
        "memory:///stella-corpus/a.jsonl", "memory:///stella-corpus/deep/b.csv",
    ]  # fmt: skip
    assert len(find_shards(["memory://stella-corpus/*.jsonl", "memory://stella-corpus"])) == 2
    items = [{"number": i, "path": s.path, "bytes": s.bytes} for i, s in enumerate(shards)]
    windows = read_shards(pa.Table.from_pylist(items), CorpusColumns(), (), 10)
    rows = pa.concat_tables(windows).to_pylist()
    assert [(row["shard"], row["doc_id"]) for row in rows] == [(0, "1"), (1, "2")]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("nowhere", "no such file or folder; check --corpus"),
        ("s/nowhere.jsonl", "no such file or folder; check --corpus"),
        ("s/*.parquet", "no file matches this pattern; check --corpus"),
        ("empty", "the folder holds no file; check --corpus"),
        ("hidden", "the folder holds no file; check --corpus"),
        ("texts", "none of its 1 files is a shard; expected .parquet, .jsonl, .ndjson, .csv"),
        ("texts/a.txt", "not a format that is read here; expected .parquet, .jsonl"),
        ("texts/*", "not a format that is read here; expected .parquet, .jsonl"),
        ("s/a.parquet.gz", "not a format that is read here"),
    ],
)
def test_what_can_t_be_a_corpus_is_named(make: Callable[..., Path], item: str, said: str) -> None:
    folder = make("s/a.jsonl", "s/a.parquet.gz", "texts/a.txt", "hidden/_SUCCESS")
    (folder / "empty").mkdir()
    with pytest.raises(CorpusError) as caught:
        find_shards([str(folder / "s/a.jsonl"), str(folder / item)])
    assert str(folder) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_corpus_and_an_unknown_storage_are_refused() -> None:
    with pytest.raises(CorpusError, match=r"--corpus names no shard"):
        find_shards([])
    with pytest.raises(SettingsError, match=r"^nosuch://x: this storage can't be read"):
        find_shards(["nosuch://x"])


# ---------------------------------------------------------------- kept columns

ROW = {"id": 1, "text": "a", "year": 2024, "points": 1.5, "good": True, "tags": ["x"], "note": "n"}


@pytest.fixture
def shards(tmp_path: Path) -> dict[str, Shard]:
    """One shard of each format with the same row."""
    line = json.dumps(ROW) + "\n"
    (tmp_path / "a.jsonl").write_text(line, "utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    (tmp_path / "c.csv").write_text(f"{','.join(ROW)}\n1,a,2024,1.5,true,x,n\n", "utf-8")
    table = pa.Table.from_pylist([ROW])
    at = table.column_names.index("note")
    pq.write_table(table.set_column(at, "note", table["note"].dictionary_encode()),
                   tmp_path / "d.parquet")  # fmt: skip
    return {shard.path.rpartition(".")[2]: shard for shard in find_shards([str(tmp_path)])}


KEPT = CorpusColumns(kept=("year", "points", "good", "tags", "note"))
TYPES = [pa.int64(), pa.float64(), pa.bool_(), pa.list_(pa.string()), pa.string()]


@pytest.mark.parametrize("form", ["jsonl", "gz", "parquet"])
def test_kept_columns_get_the_types_of_their_shards(shards: dict[str, Shard], form: str) -> None:
    fields = kept_fields([shards[form]], KEPT, None)
    assert [field.name for field in fields] == list(KEPT.kept)
    assert [field.type for field in fields] == TYPES


def test_csv_has_text_only_and_where_formats_disagree_text_is_taken(
    shards: dict[str, Shard],
) -> None:
    assert {f.type for f in kept_fields([shards["csv"]], KEPT, None)} == {pa.string()}
    assert {f.type for f in kept_fields(list(shards.values()), KEPT, None)} == {pa.string()}
    agreeing = kept_fields([shards["jsonl"], shards["parquet"]], KEPT, None)
    assert [field.type for field in agreeing] == TYPES
    for name in ("jsonl", "parquet"):
        (window,) = read_shard(shards[name], 0, KEPT, agreeing, 10)
        assert window.select(KEPT.kept).to_pylist() == [{k: ROW[k] for k in KEPT.kept}]


def test_the_table_s_own_types_win_and_need_no_look_at_the_shards() -> None:
    table = pa.schema([("year", pa.int32()), ("tags", pa.string()), ("vector", pa.float32())])
    columns = CorpusColumns(kept=("tags", "year"))
    fields = kept_fields([Shard("/nowhere/a.parquet", 1)], columns, table)
    assert [(f.name, f.type) for f in fields] == [("tags", pa.string()), ("year", pa.int32())]


def test_no_kept_columns_means_no_look_at_the_shards() -> None:
    assert kept_fields([Shard("/nowhere/a.parquet", 1)], CorpusColumns(), None) == []


def test_names_that_the_table_needs_are_refused(shards: dict[str, Shard]) -> None:
    assert {"vector", "row_key", "doc_id", "text", "shard", "reason"} <= RESERVED
    for name in sorted(RESERVED):
        with pytest.raises(
            SettingsError, match=f"--keep_columns {name}: the table needs this name"
        ):
            kept_fields([shards["parquet"]], CorpusColumns(kept=("year", name)), None)


def test_a_missing_kept_column_of_parquet_is_refused_at_once(shards: dict[str, Shard]) -> None:
    with pytest.raises(CorpusError, match=r"d\.parquet: no column month; it has id, text"):
        kept_fields([shards["parquet"]], CorpusColumns(kept=("month",)), None)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([None, 1, 2.5], pa.float64()), ([1, "a"], pa.string()), ([True, 1], pa.string()),
        ([2**63], pa.string()), ([None, None], pa.string()), ([[1], ["a"]], pa.string()),
        ([[1], None, [2.5]], pa.list_(pa.float64())),
    ],
)  # fmt: skip
def test_types_of_jsonl_come_from_its_first_lines(
    tmp_path: Path, cells: list[object], kind: pa.DataType
) -> None:
    path = tmp_path / "a.jsonl"
    lines = "".join(json.dumps({"id": 1, "text": "a", "x": cell}) + "\n" for cell in cells)
    path.write_text(f"\ufeff{lines}not json\n", "utf-8")
    (field,) = kept_fields([Shard(str(path), 1)], CorpusColumns(kept=("x",)), None)
    assert field.type == kind


def test_a_shard_that_can_t_be_looked_at_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("id,text\n", "utf-8")
    for name in ("a.parquet", "gone.jsonl"):
        with pytest.raises(CorpusError, match=name):
            kept_fields([Shard(str(tmp_path / name), 1)], CorpusColumns(kept=("x",)), None)


# ---------------------------------------------------------------- corpora


def test_a_corpus_knows_its_size_and_its_shards_names(shards: dict[str, Shard]) -> None:
    corpus = ShardedCorpus(list(shards.values()), CorpusColumns(), [])
    assert corpus.bytes == sum(Path(shard.path).stat().st_size for shard in shards.values())
    assert corpus.shard_name(0) == corpus.shards[0].path


def test_a_dataset_s_rows_have_no_place() -> None:
    block = pa.table({"id": ["1"], "text": ["a"], "year": [2024]})
    kept = [pa.field("year", pa.string())]
    rows = dataset_rows(block, CorpusColumns(kept=("year",)), kept)
    assert rows.schema == source(kept)
    assert rows.to_pylist()[0] | {"year": "2024", "row": -1, "shard": -1} == rows.to_pylist()[0]
    assert DatasetCorpus(None, CorpusColumns(), []).shard_name(-1) == "dataset"  # type: ignore[arg-type]
