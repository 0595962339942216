"""The overlap check as a job: what was planted is found, and what is left is clean."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.overlap import OverlapJob, run
from stella_ray.errors import CorpusError, SettingsError
from stella_ray.learn.reading import read_examples
from stella_ray.learn.sources import ExampleSource

pytestmark = pytest.mark.ray

QUESTIONS = ["黄河哪一年断流最严重", "签一年合同试用期最长多久", "怎么估计打雷的地方离我多远"]
PASSAGES = [
    "一九九七年黄河断流二百二十六天，河口无水入海。",
    "劳动合同期限满一年不满三年的，试用期不得超过二个月。",
]


def clean_rows(count: int) -> list[dict[str, Any]]:
    """Rows that share nothing with the evaluation set, each with texts of its own."""
    return [
        {
            "query": chr(0x6000 + i) * 7,
            "passage": chr(0x7000 + i) * 30,
            "negatives": [chr(0x8000 + i) * 9],
        }
        for i in range(count)
    ]


@pytest.fixture
def place(tmp_path: Path, write_jsonl: Callable[..., Path], local_ray: None) -> Path:
    rows = [{"_id": f"q{i}", "text": text} for i, text in enumerate(QUESTIONS)]
    write_jsonl(tmp_path / "eval/queries.jsonl", rows)
    rows = [{"_id": f"d{i}", "text": text} for i, text in enumerate(PASSAGES)]
    write_jsonl(tmp_path / "eval/corpus.jsonl", rows)
    planted = {
        3: {
            "query": "黄河哪一年 断流最严重",
            "passage": PASSAGES[0].replace("，", ","),
        },  # width, spaces
        5: {"query": "请问，签一年合同试用期最长多久？"},
        8: {"passage": "据新华社电，" + PASSAGES[1]},
        9: {"negatives": ["无关的话", PASSAGES[0]]},
    }
    rows = [row | planted.get(i, {}) for i, row in enumerate(clean_rows(40))]
    write_jsonl(tmp_path / "train/a.jsonl", rows)
    write_jsonl(tmp_path / "train/b.jsonl", clean_rows(60)[40:])
    write_jsonl(
        tmp_path / "train/c.jsonl",
        [{"query": QUESTIONS[2], "passage": "看闪电和雷声差几秒", "negatives": []}],
    )
    return tmp_path


def job(place: Path, **more: Any) -> OverlapJob:
    own = {
        "train": [str(place / "train")],
        "against": [str(place / "eval")],
        "out": str(place / "out"),
    }
    return OverlapJob(**{**own, "negatives_column": "negatives", **more})


def test_what_was_planted_is_found_by_file_and_kind(
    place: Path, capsys: pytest.CaptureFixture[str]
):
    run(job(place, negatives_column=None))
    report = json.loads((place / "out/report.json").read_text(encoding="utf-8"))
    assert (report["rows"], report["touched"]) == (61, 4)
    name = str(place / "eval")
    assert {kind: n for kind, n in report["against"][name].items() if n} == {
        "query_equal": 2, "passage_equal": 1, "pair_equal": 1, "query_near": 1, "passage_near": 1,
    }  # fmt: skip
    assert [own["touched"] for own in report["files"]] == [3, 0, 1]
    assert report["sets"][0]["different"] == 5
    near = next(one for one in report["examples"] if one["kind"] == "passage_near")
    assert (near["row"], near["share"], near["evaluation_text"]) == (8, 1.0, PASSAGES[1])
    assert near["at"] == f"{place / 'eval/corpus.jsonl'} row 1 column text"
    assert "4 of 61 rows touched (6.56%)" in capsys.readouterr().out


def test_removal_leaves_exactly_the_clean_rows(place: Path):
    run(job(place, remove=True))
    kept = {path.name: path for path in (place / "out/clean").iterdir()}
    assert sorted(kept) == ["00000-a.parquet", "00001-b.parquet"]  # nothing is left of c
    source = ExampleSource(name="s", kind="pairs", files=["x"], negatives_column="negatives")
    rows = [
        {"query": one.query, "passage": one.passage, "negatives": one.negatives}
        for name in sorted(kept)
        for one in read_examples(str(kept[name]), source)
    ]
    assert rows == [row for i, row in enumerate(clean_rows(60)) if i not in (3, 5, 8, 9)]


def test_a_bad_training_row_or_a_taken_folder_leaves_nothing_behind(
    place: Path, write_jsonl: Callable[..., Path]
):
    write_jsonl(place / "train/d.jsonl", [{"query": "有", "passage": "有"}, {"query": "没有"}])
    with pytest.raises(Exception, match=re.escape("d.jsonl: row 1 (from 0)")):
        run(job(place, remove=True))
    assert not (place / "out").exists()
    (place / "out").mkdir()
    (place / "out/note").write_text("mine", encoding="utf-8")
    with pytest.raises(SettingsError, match="isn't empty"):
        run(job(place))
    with pytest.raises(CorpusError, match="no such file; check --against"):
        run(job(place, out=str(place / "other"), against=[str(place / "none")]))
    assert sorted(path.name for path in place.iterdir()) == ["eval", "out", "train"]


def test_settings_that_cannot_hold_are_refused(tmp_path: Path):
    for wrong, says in (
        ({"threshold": 0.0}, "threshold 0.0 is no share"),
        ({"near_from": 2}, "near_from 2 is too small"),
        ({"against": []}, "--against names no"),
        ({"against": ["a", "a"]}, "twice"),
        ({"train": []}, "no files"),
        ({"kind": "nli", "negatives_column": "n"}, "negatives_column goes with kind pairs"),
    ):
        with pytest.raises(SettingsError, match=says):
            job(tmp_path, **{"negatives_column": None, **wrong})
