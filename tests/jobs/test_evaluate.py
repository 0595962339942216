"""The evaluation job beside mteb with plain sentence-transformers: one task of each type."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from jobs.evaluate import EvaluateJob, LongSettings, run
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import CorpusError, SettingsError
from stella_ray.evaluate.results import TaskResult
from stella_ray.evaluate.tasks import CMTEB, MTEB_MAIN
from tests.evaluate.small_tasks import write_long, write_tasks

pytest.importorskip("mteb")  # which wants Python 3.11

TASKS = ["STSB", "Ocnli", "TNews", "CLSClusteringS2S", "T2Reranking", "CmedqaRetrieval"]


@pytest.fixture(scope="module")
def local_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("cmteb"))


def by_mteb(encoder: Path, data: Path, prompted: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """mteb's scores with sentence-transformers, prompts on these types of tasks alone."""
    import mteb
    from sentence_transformers import SentenceTransformer

    from stella_ray.evaluate.cmteb import open_task
    from stella_ray.evaluate.local_data import find_local

    out = {}
    tasks = [CMTEB[name] for name in TASKS]
    local = find_local(str(data), tasks)
    for task in tasks:
        model = SentenceTransformer(str(encoder), device="cpu")
        if task.type not in prompted:
            model.prompts = {}
        found = mteb.evaluate(model, open_task(task, local[task.name]), cache=None)
        out[task.name] = found.task_results[0].scores[task.split][0]
    return out


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # mteb's, scikit-learn's and sentence-transformers' own
def test_each_type_of_task_scores_as_mteb_does_with_sentence_transformers(
    tiny_encoder: Path,
    other_encoder: Path,
    local_tasks: Path,
    local_ray: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = EvaluateJob(
        encoder=EncoderSettings(path=str(tiny_encoder)), suite="cmteb", data=str(local_tasks),
        hub=False, output=str(tmp_path / "out"),
    )  # fmt: skip
    report = run(job)
    theirs = by_mteb(tiny_encoder, local_tasks, ("Retrieval",))
    found = {one["task"]: one for one in report["tasks"] if one["ranking"] == "vectors"}
    assert sorted(found) == sorted(TASKS)
    for name, scores in theirs.items():
        for metric, value in found[name]["metrics"].items():
            wanted = scores["main_score"] if metric == MTEB_MAIN else scores[metric]
            assert value == pytest.approx(wanted, abs=1e-4), (name, metric)
        score = found[name]["metrics"][found[name]["metric"]]
        assert 0.01 < score < 0.99, name  # neither everything nor nothing is right
    assert found["CmedqaRetrieval"]["facts"]["prefixes"] == {
        "query": "查询: ",
        "document": "结果: ",
    }
    assert found["T2Reranking"]["facts"]["prefixes"] == {"query": "", "document": ""}
    assert found["STSB"]["facts"]["texts_embedded"] < 2 * found["STSB"]["facts"]["rows"]

    # The text that a person sees: never a mean without how many of how many.
    told = capsys.readouterr().out
    assert "the model card's metrics, 6 of 35 tasks" in told
    assert "MTEB(cmn, v1), mteb's own metrics, 6 of 31 tasks" in told
    assert "not available, 29 tasks: AmazonReviewsClassification, IFlyTek" in told
    assert {one["ranking"] for one in report["tasks"] if one["task"] == "CmedqaRetrieval"} == {
        "vectors", "bm25", "hybrid",
    }  # fmt: skip

    # Units make the score again.
    records = [path for path in (tmp_path / "out").rglob("*.json") if path.name != "report.json"]
    kept = [TaskResult.from_json(json.loads(path.read_text("utf-8"))) for path in records]
    assert len(kept) == 8
    for one in kept:
        assert remade(one) == pytest.approx(one.score, abs=1e-5), (one.task, one.ranking)

    # Again: nothing is embedded, records come from the folder; other data or prefixes don't serve.
    again = run(dataclasses.replace(job, suite="stsb,T2RERANKING"))
    assert [(one["task"], one["from_cache"]) for one in again["tasks"]] == [
        ("STSB", True), ("T2Reranking", True),
    ]  # fmt: skip
    assert [one["metrics"] for one in again["tasks"]] == [
        found[name]["metrics"] for name in ("STSB", "T2Reranking")
    ]
    assert "from cache" in capsys.readouterr().out
    write_long(local_tasks / "small.json")
    both = run(
        dataclasses.replace(
            job, suite="T2Reranking,Small", prefixes="retrieval_and_reranking", pool="all",
            against=str(other_encoder), long=LongSettings(questions="all"),
        )
    )  # fmt: skip
    wanted = by_mteb(tiny_encoder, local_tasks, ("Retrieval", "Reranking"))["T2Reranking"]
    reranked, *long = both["a"]["tasks"]
    assert not reranked["from_cache"]
    assert reranked["metrics"]["map_at_1000"] == pytest.approx(wanted["map_at_1000"], abs=1e-4)
    assert reranked["metrics"]["map_at_1000"] != found["T2Reranking"]["metrics"]["map_at_1000"]

    # Two encoders side by side, and a long set in one pool with itself.
    assert [(one["task"], one["ranking"]) for one in long] == [
        ("small (all)", ranking) for ranking in ("vectors", "bm25", "hybrid")
    ]
    assert [one["bucket"] for one in long[0]["facts"]["positions"]] == ["0-128", "512-1024"]
    rows = {row["name"]: row for row in both["comparison"]["tasks"]}
    assert sorted(rows) == ["T2Reranking", "small (all)"]
    assert rows["T2Reranking"]["a"] == reranked["metrics"]["map_at_1000"]
    assert rows["T2Reranking"]["b"] == both["b"]["tasks"][0]["metrics"]["map_at_1000"]
    low, high = (rows["T2Reranking"]["found"][end] for end in ("low", "high"))
    assert low <= rows["T2Reranking"]["difference"] <= high
    told = capsys.readouterr().out
    assert "B - A      95% interval" in told
    assert "to the vectors, p " in told
    pages = [path.name for path in (tmp_path / "out").rglob("*.html")]
    assert len(pages) == 3  # a page for each, and one for both


def remade(one: TaskResult) -> float:
    """The main metric from its units."""
    import numpy as np
    from scipy.stats import spearmanr
    from sklearn.metrics import average_precision_score

    units = one.units[one.metric]
    if units.statistic == "mean":
        return float(np.mean(units.values))
    if units.statistic == "spearman":
        return float(spearmanr(units.values, units.labels).statistic)
    return float(average_precision_score(units.labels, units.values))


def test_a_task_that_is_named_and_not_there_is_an_error(
    tiny_encoder: Path, local_tasks: Path, tmp_path: Path
) -> None:
    job = EvaluateJob(
        encoder=EncoderSettings(path=str(tiny_encoder)), suite="LCQMC", data=str(local_tasks),
        hub=False, output=str(tmp_path / "out"),
    )  # fmt: skip
    with pytest.raises(CorpusError, match="task LCQMC: no folder for it in --data, and --hub is f"):
        run(job)


def test_unknown_names_are_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"'T2Retreival' \(did you mean T2Retrieval\?\)"):
        run(EvaluateJob(suite="T2Retreival,stsb", output=str(tmp_path), data=str(tmp_path)))
    with pytest.raises(SettingsError, match=r"suite long has no sets; give --long\.sets or"):
        EvaluateJob(suite="long", output=str(tmp_path))
    with pytest.raises(SettingsError, match="reference 'gpt' isn't known; expected one of stella-"):
        EvaluateJob(reference="gpt", output=str(tmp_path))
