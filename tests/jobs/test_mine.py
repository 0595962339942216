"""Mining as a user does it: what is planted never comes out, and training reads what does."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import mine
from jobs.mine import MineJob, run
from stella_ray import settings
from stella_ray.encode.encoder import Encoder
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import SettingsError
from stella_ray.learn.examples import open_examples, text_key
from stella_ray.learn.negatives import FilterSettings
from stella_ray.learn.ngrams import containment, shingles
from stella_ray.learn.sources import ExampleSource
from stella_ray.pipeline import mine as mining
from stella_ray.pipeline.queries import vector_hits
from stella_ray.pipeline.whole import whole_folder
from stella_ray.table.nearest import exact
from stella_ray.table.search import open_live
from stella_ray.table.vectors import table_uri
from tests.conftest import HAN, S3Place
from tests.jobs.conftest import Desk
from tests.jobs.test_search import fill
from tests.learn.test_bm25 import by_formula

pytestmark = pytest.mark.ray

OPEN = FilterSettings(rank_from=1, rank_to=300, ceiling=9, bm25_ceiling=9)
"""Only texts decide: what is planted scores best of all, and no score saves us from it."""

TOPICS = 12


def words(seed: int, length: int) -> str:
    return "".join(np.random.default_rng(seed).choice(HAN[:1_500], length))


def planted(topic: int) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Pairs of a topic, what must never be their negative, and what may be."""
    query = f"何事{words(topic, 6)}"  # the same two in each, so that topics meet
    first, second = words(100 + topic, 40), words(200 + topic, 40)
    first, second = f"{query}ABC12{first}", f"{query}{second}"
    pairs = [
        {"query": query, "passage": first, "negatives": [f"给{query}", first]},
        {"query": f"{query[:4]}　{query[4:]}", "passage": second, "negatives": []},
    ]
    never = [
        query, first, second,
        first.replace("ABC12", "ＡＢＣ１２"), f" {first[:9]} {first[9:]}", f"{second[:20]}\n{second[20:]}",
        f"{first[:30]}换{first[31:]}", f"前文{second}后文", first[:30],
    ]  # fmt: skip
    may = [f"{query}{words(1_000 + 10 * topic + i, 40)}" for i in range(4)]
    return pairs, never, may


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, local_ray: None) -> Desk:
    """Pairs, a corpus with everything planted, and a table of it."""
    home = tmp_path_factory.mktemp("mine")
    pairs, texts = [], []
    for topic in range(TOPICS):
        more, never, may = planted(topic)
        pairs += more
        texts += never + may
    (home / "corpus").mkdir()
    ids = [f"d{i}" for i in range(len(texts))]
    for name, some in (("a", slice(0, 70)), ("b", slice(70, None))):
        rows = {"id": ids[some], "text": texts[some]}
        pq.write_table(pa.table(rows), home / f"corpus/{name}.parquet")
    (home / "damaged").mkdir()
    whole = (home / "corpus/a.parquet").read_bytes()
    (home / "damaged/a.parquet").write_bytes(whole)
    (home / "damaged/b.parquet").write_bytes(whole[:-99])
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs)
    (home / "pairs.jsonl").write_text(lines, encoding="utf-8")
    documents = [(doc_id, None, text) for doc_id, text in zip(ids, texts, strict=True)]
    table = fill(home / "db/docs", EncoderSettings(path=str(tiny_encoder)), documents=documents)
    return Desk(home / "corpus", table, tiny_encoder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the pairs are built, instead of the home's cache."""
    monkeypatch.setenv("STELLA_RAY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def job(place: Desk, out: Path | str, **more: Any) -> MineJob:
    own = {
        "pairs": [str(place.corpus.parent / "pairs.jsonl")],
        "negatives_column": "negatives",
        "corpus": [str(place.corpus)],
        "out": str(out),
        "filters": OPEN,
    }
    return MineJob(**{**own, **more})


def rows_of(out: Path) -> list[dict[str, Any]]:
    parts = sorted(out.glob("*.parquet"))
    return [row for path in parts for row in pq.read_table(path).to_pylist()]


def check_planted(rows: list[dict[str, Any]], least: int) -> None:
    """Nothing planted for a row's topic comes out; enough else does, each text once."""
    assert len(rows) == 2 * TOPICS
    for number, row in enumerate(rows):
        pairs, never, _ = planted(number // 2)
        assert (row["query"], row["passage"]) == tuple(list(pairs[number % 2].values())[:2])
        assert len(row["negatives"]) == len(row["mined"]) >= least
        keys = [text_key(text) for text in row["negatives"]]
        assert len(set(keys)) == len(keys)
        assert not set(keys) & {text_key(text) for text in never}
        mined = [
            text
            for text, told in zip(row["negatives"], row["mined"], strict=True)
            if told["source"] != "given"
        ]
        for positive in (pair["passage"] for pair in pairs):
            assert all(containment(shingles(t), shingles(positive)) <= 0.8 for t in mined)


def test_what_is_planted_never_comes_out_and_training_reads_the_rest(
    place: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mined"
    report = run(
        job(
            place, out, methods=["bm25,vector"], table=str(place.table), negatives=9,
            encoder=EncoderSettings(path=str(place.encoder)), queries_at_once=10,
        )
    )  # fmt: skip
    assert [path.name for path in sorted(out.iterdir())] == [
        "part-00000.parquet", "part-00001.parquet", "part-00002.parquet", "report.json",
    ]  # fmt: skip
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    rows = rows_of(out)
    check_planted(rows, least=6)
    sources = [told["source"] for row in rows for told in row["mined"]]
    assert set(sources) == {"given", "bm25", "vector"}
    counts = report["counts"]
    assert counts["pairs"] == len(rows)
    assert counts["given.taken"] == sources.count("given") == TOPICS
    assert counts["given.positive_or_query"] == TOPICS
    for method in ("bm25", "vector"):
        assert counts[f"{method}.taken"] == sources.count(method)
        assert counts[f"{method}.near_duplicate"] + counts[f"{method}.positive_or_query"] > 0
    assert json.loads((out / "report.json").read_text("utf-8"))["filter"] == OPEN.version
    assert f"{2 * TOPICS} pairs, 0 of them without negatives" in capsys.readouterr().out

    corpus = pq.read_table(place.corpus).to_pylist()
    by_id = {row["id"]: row["text"] for row in corpus}
    texts = [row["text"] for row in corpus]
    encoder = Encoder(EncoderSettings(path=str(place.encoder)))
    passages = encoder.embed(texts)
    for row in rows[:4]:
        own = encoder.embed([row["query"]], prefix="query")[0]
        scores = {"vector": dict(zip(texts, passages @ own, strict=True)),
                  "bm25": dict(zip(texts, by_formula(row["query"], texts), strict=True))}  # fmt: skip
        assert row["positive_vector"] == pytest.approx(
            float(encoder.embed([row["passage"]])[0] @ own), abs=1e-4
        )
        for text, told in zip(row["negatives"], row["mined"], strict=True):
            if told["source"] == "given":
                assert told == {**dict.fromkeys(told), "source": "given"}
                continue
            assert by_id[told["id"]] == text
            assert told["filter"] == OPEN.version
            assert told["positive_score"] == row[f"positive_{told['source']}"]
            here = scores[told["source"]]
            assert told["score"] == pytest.approx(here[text], abs=1e-4)
            above = sum(score > told["score"] + 1e-4 for score in here.values())
            near = sum(score > told["score"] - 1e-4 for score in here.values())
            assert above < told["rank"] <= near

    mined = ExampleSource(name="m", kind="pairs", files=[str(out)], negatives_column="negatives")
    store = open_examples(mined, tmp_path / "cache")
    assert store.rows == len(rows)
    assert store.take(np.arange(1))[0]["negatives"] == rows[0]["negatives"]


def test_neither_parts_nor_windows_nor_another_run_change_what_bm25_finds(
    place: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(job(place, tmp_path / "one"))
    monkeypatch.setattr(mining, "ROWS_PER_PICK", 3)
    report = run(job(place, tmp_path / "many", part_rows=20, queries_at_once=7))
    assert report["candidates"] == {"rows": 156, "passed_over": 0, "parts": 8}
    one, many = rows_of(tmp_path / "one"), rows_of(tmp_path / "many")
    check_planted(one, least=4)
    assert one == many


def test_without_a_corpus_the_pairs_own_passages_serve(place: Desk, tmp_path: Path) -> None:
    filters = FilterSettings(rank_from=1, bm25_ceiling=9)
    run(job(place, tmp_path / "a", corpus=[], given="drop", pick="first", filters=filters))
    rows = rows_of(tmp_path / "a")
    passages = {row["passage"] for row in rows}
    assert sum(len(row["negatives"]) for row in rows) > 0
    assert all(set(row["negatives"]) <= passages - {row["passage"]} for row in rows)
    assert all(told["source"] == "bm25" for row in rows for told in row["mined"])


def test_the_index_and_reading_in_parts_find_the_same_in_a_small_table(place: Desk) -> None:
    table = open_live(table_uri(str(place.table)))
    queries = np.random.default_rng(0).standard_normal((300, 32)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    wanted, addresses = exact(table, queries, 9)
    for rows_of_task in (None, 1, 10_000):
        found = vector_hits(table, queries, 9, rows_of_task, 0.25)
        assert found["score"] == pytest.approx(wanted, abs=1e-5)
        assert (found["place"] == addresses).mean() > 0.98
    assert (vector_hits(table, queries, 200, None, 0.25)["place"] < 0).sum(1).tolist() == [44] * 300


def test_pairs_corpus_and_folder_may_be_on_s3(
    place: Desk, s3: S3Place, s3_fs: Any, tmp_path: Path
) -> None:
    home = place.corpus.parent
    s3_fs.put(str(home / "pairs.jsonl"), f"{s3.bucket}/pairs.jsonl")
    s3_fs.put(str(place.corpus), f"{s3.bucket}/corpus", recursive=True)
    run(job(place, tmp_path / "here"))
    there = {"pairs": [f"{s3.uri}/pairs.jsonl"], "corpus": [f"{s3.uri}/corpus"]}
    run(job(place, f"{s3.uri}/mined", storage=s3.storage, **there))
    s3_fs.get(f"{s3.bucket}/mined", str(tmp_path / "there"), recursive=True)
    assert rows_of(tmp_path / "there") == rows_of(tmp_path / "here")
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == [
        "part-00000.parquet", "report.json",
    ]  # fmt: skip
    with pytest.raises(SettingsError, match="is there and isn't empty"):
        run(job(place, f"{s3.uri}/mined", storage=s3.storage, **there))


def test_the_folder_may_be_on_s3_and_is_there_whole_or_not_at_all(
    s3: S3Place, s3_fs: Any, tmp_path: Path
) -> None:
    def half_way(out: str) -> None:
        with whole_folder(out, s3.storage) as (store, folder):
            store.pipe_file(f"{folder}/part-0.parquet", b"1")
            raise RuntimeError("half-way")

    for out in (f"{s3.uri}/mined/", str(tmp_path / "mined")):
        with pytest.raises(RuntimeError, match="half-way"):
            half_way(out)
        assert not s3_fs.find(s3.bucket)
        assert not list(tmp_path.iterdir())
    for out in (f"{s3.uri}/mined/", str(tmp_path / "mined")):
        with whole_folder(out, s3.storage) as (store, folder):
            store.pipe_file(f"{folder}/part-0.parquet", b"1")
        with (
            pytest.raises(SettingsError, match="is there and isn't empty"),
            whole_folder(out, s3.storage),
        ):
            pass
    assert s3_fs.find(s3.bucket) == [f"{s3.bucket}/mined/part-0.parquet"]
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.parquet")] == [
        "mined/part-0.parquet"
    ]


# Name: (what to change in the command line, exit code, what the line must say)
CASES: dict[str, tuple[dict[str, str], int, str]] = {
    "no pairs": ({"--pairs": "/nope.jsonl"}, 3, "/nope.jsonl: no such file"),
    "another column": ({"--query_column": "q"}, 3, "no column q; it has query"),
    "a broken line": ({"--pairs": "BAD"}, 3, r"bad.jsonl: row 1 \(from 0\): no line of JSON"),
    "no corpus": ({"--corpus": "/nope"}, 3, "/nope: no such file or folder"),
    "a corpus without ids": ({"--doc_id_column": "key"}, 3, "no column key"),
    "a damaged shard": ({"--corpus": "DAMAGED"}, 3, "b.parquet: can't be read as parquet"),
    "a full folder": ({"--out": "HOME"}, 2, "is there and isn't empty"),
    "a file as folder": ({"--out": "BAD"}, 2, "is a file"),
    "an unknown method": ({"--methods": "bm25,tfidf"}, 2, "methods bm25,tfidf can't be"),
    "no table": ({"--methods": "vector"}, 2, "give --table DIR/NAME, which `python jobs/embed.py"),
    "no such table": ({"--methods": "bm25,vector", "--table": "db/none"}, 5, "none.lance: no such table; `python jobs/embed.py --corpus … --table db/none"),
    "another encoder": ({"--methods": "bm25,vector", "--table": "TABLE", "--encoder.path": "OTHER"}, 4, "differ in weights. Give the table's own encoder"),
    "no negatives": ({"--negatives": "0"}, 2, "negatives 0 is too small"),
    "no window": ({"--rank_from": "9", "--rank_to": "3"}, 2, "rank_from 9 and rank_to 3 are no"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_with_its_exit_code_and_writes_nothing(
    name: str,
    place: Desk,
    other_encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    change, code, says = CASES[name]
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"query": "一", "passage": "壹"}\n{"query": \n', encoding="utf-8")
    flags = {
        "--pairs": str(place.corpus.parent / "pairs.jsonl"),
        "--corpus": str(place.corpus),
        "--out": str(tmp_path / "out"),
        "--encoder.path": str(place.encoder),
    }
    names = {
        "BAD": bad, "HOME": place.corpus, "TABLE": place.table, "OTHER": other_encoder,
        "DAMAGED": place.corpus.parent / "damaged",
    }  # fmt: skip
    flags |= {flag: str(names.get(value, value)) for flag, value in change.items()}
    words = [word for pair in flags.items() for word in pair]
    if name == "no table":
        words = [word for word in words if word not in ("--corpus", str(place.corpus))]
    monkeypatch.setattr(sys, "argv", ["jobs/mine.py", *words])
    with pytest.raises(SystemExit) as left:
        settings.run_job(mine.main)
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert left.value.code == code, said
    assert len(lines) == 1, said
    assert "Traceback" not in said
    assert re.search(says, lines[0]), lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl"]
