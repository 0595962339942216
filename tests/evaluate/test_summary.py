"""The published figures, and means that are of what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from stella_ray.encode.models import EncoderSettings, EncoderSpec, find_encoder
from stella_ray.evaluate.references import card_of, published, stella_base_card
from stella_ray.evaluate.results import TaskResult
from stella_ray.evaluate.summary import means, table
from stella_ray.evaluate.tasks import CMTEB, MAIN, MTEB_MAIN, prefixes_of, resolve_prefixes


def result(task: str, value: float, **metrics: float) -> TaskResult:
    kind = CMTEB[task].type
    return TaskResult(task=task, type=kind, metric=MAIN[kind][0],
                      metrics={MAIN[kind][0]: value, **metrics})  # fmt: skip


@pytest.mark.parametrize("encoder", list(published()["table"]))
def test_the_tasks_figures_make_the_cards_table(encoder: str) -> None:
    card, row = card_of(encoder), published()["table"][encoder]
    found = means([result(task, value / 100) for task, value in card.items()], card)
    assert [one.name for one in found][1:] == [
        "Classification", "Clustering", "PairClassification", "Reranking", "Retrieval", "STS",
    ]  # fmt: skip
    assert (found[0].tasks, found[0].expected) == (35, 35)
    assert found[0].ours == pytest.approx(found[0].card)
    for one, wanted in zip(found, [row["average"], *(row[m.name] for m in found[1:])], strict=True):
        assert one.ours == pytest.approx(wanted, abs=0.0101)  # the table cuts where it rounds not


def test_the_whole_card_has_the_main_metric_of_each_task_on_its_split() -> None:
    whole, card = stella_base_card()["tasks"], card_of("stella-base-zh")
    assert sorted(whole) == sorted(CMTEB) == sorted(card)
    for name, task in CMTEB.items():
        assert (whole[name]["split"], whole[name]["subset"]) == (task.split, task.subset)
        main = whole[name]["metrics"][MAIN[task.type][1]]
        assert main == pytest.approx(card[name], abs=1e-4)


def test_a_mean_says_of_how_many_of_how_many_tasks_it_is() -> None:
    results = [result("STSB", 0.8, **{MTEB_MAIN: 0.8}), result("Ocnli", 0.7, **{MTEB_MAIN: 0.6})]
    results += [result("STS22", 0.5)]  # not among mteb's 31
    found = {one.name.partition(",")[0]: one for one in means(results, {"STSB": 70, "Ocnli": 60})}
    assert found["C-MTEB"].label.endswith("3 of 35 tasks")
    assert found["C-MTEB"].ours == pytest.approx(200 / 3)
    assert found["C-MTEB"].card is None  # the card has but two of the three
    assert found["PairClassification"].card == 60
    assert found["STS"].label == "STS, 2 of 8 tasks"
    of_31 = found["MTEB(cmn"]
    assert (of_31.tasks, of_31.expected, of_31.ours) == (2, 31, pytest.approx(70))
    told = table(results, {"STSB": 70.0}, "stella-base-zh", ["STSB"])
    (line,) = (line for line in told.splitlines() if line.startswith("STSB"))
    assert line.split()[-5:] == ["80.00", "70.00", "+10.00", "from", "cache"]
    assert all("of 35 tasks" in line for line in told.splitlines() if "C-MTEB" in line)


def test_mtebs_own_definition_is_31_of_the_35_with_mtebs_splits() -> None:
    mteb = pytest.importorskip("mteb")
    there = {task.metadata.name: task for task in mteb.get_benchmark("MTEB(cmn, v1)").tasks}
    ours = {name: task for name, task in CMTEB.items() if task.mteb_splits}
    assert sorted(there) == sorted(ours)
    assert len(ours) == 31
    for name, task in ours.items():
        assert sorted(there[name].eval_splits) == sorted(task.mteb_splits), name
    for name, task in CMTEB.items():
        one = mteb.get_task(name)
        assert one.metadata.type == task.type
        assert task.split in one.metadata.eval_splits
        if task.type == "STS":
            assert (one.min_score, one.max_score) == task.scores, name


def spec(folder: Path, **settings: str) -> EncoderSpec:
    return find_encoder(EncoderSettings(path=str(folder), **settings))  # type: ignore[arg-type]


def test_prefixes_are_those_that_the_published_figures_were_made_with(tiny_encoder: Path) -> None:
    stella = spec(tiny_encoder)
    bge = spec(
        tiny_encoder, query_prefix="为这个句子生成表示以用于检索相关文章：", passage_prefix=""
    )
    bare = spec(tiny_encoder, query_prefix="", passage_prefix="")
    retrieval, reranking, sts = CMTEB["T2Retrieval"], CMTEB["T2Reranking"], CMTEB["STSB"]
    assert resolve_prefixes("auto", stella) == "retrieval"
    assert prefixes_of(retrieval, "auto", stella) == {"query": "查询: ", "document": "结果: "}
    assert resolve_prefixes("auto", bge) == "retrieval_and_reranking"
    assert prefixes_of(reranking, "auto", bge) == {"query": bge.query_prefix, "document": ""}
    assert resolve_prefixes("auto", bare) == "none"
    none = {"query": "", "document": ""}
    assert prefixes_of(reranking, "auto", stella) == none
    assert prefixes_of(sts, "retrieval_and_reranking", stella) == none
    assert prefixes_of(retrieval, "none", stella) == none
