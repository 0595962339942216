"""A long set's figures are mteb's own for the same vectors."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stella_ray.evaluate.longtext import evaluate_long, read_long_set

CHARACTERS = "山水日月金木火土人口手足"


def vectors(texts: Sequence[str]) -> np.ndarray:
    """Pairs of characters, hashed: near enough to be found now and then.

    Each has a weight of its own, since mteb puts equal scores in another order (by descending id).
    """
    out = np.zeros((len(texts), 32), np.float32)
    for row, text in enumerate(
        f"甲{text}乙" for text in texts
    ):  # or an empty one would tie with all
        for at in range(len(text) - 1):
            code = zlib.crc32(text[at : at + 2].encode())
            out[row, code % 32] += 0.5 + code / 2**32
    return out / np.maximum(1e-9, np.linalg.norm(out, axis=1, keepdims=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 documents; 80 questions, each about one to three of them, one without a text."""
    dice = np.random.default_rng(0)

    def text(length: int) -> str:
        return "".join(dice.choice(list(CHARACTERS), length))

    corpus = [{"_id": f"d{i}", "text": text(40)} for i in range(60)]
    queries, qrels = [], "query-id\tcorpus-id\tscore\n"
    for i in range(80):
        about = dice.choice(60, dice.integers(1, 4), replace=False)
        part = corpus[about[0]]["text"][5:15] if i else ""
        queries.append({"_id": f"q{i}", "text": part, "answer_start": 5})
        qrels += "".join(f"q{i}\td{d}\t1\n" for d in about)
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "qrels.tsv").write_text(qrels)
    return tmp_path


def by_mteb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mteb = pytest.importorskip("mteb")
        from datasets import Dataset
        from mteb.abstasks import AbsTaskRetrieval
        from mteb.models.model_meta import ModelMeta

        rows = {
            name: [
                {"id": row["_id"], "text": row["text"]}
                for row in map(json.loads, (folder / f"{name}.jsonl").read_text().split("\n"))
            ]
            for name in ("corpus", "queries")
        }
        relevant: dict[str, dict[str, int]] = {}
        for line in (folder / "qrels.tsv").read_text().rstrip().split("\n")[1:]:
            query, document, score = line.split("\t")
            relevant.setdefault(query, {})[document] = int(score)
        nothing = dict.fromkeys(
            (
                *("reference", "date", "domains", "task_subtypes", "license", "dialect"),
                *("annotations_creators", "sample_creation", "bibtex_citation"),
            )
        )

        class Local(AbsTaskRetrieval):  # type: ignore[misc]
            metadata = mteb.TaskMetadata(
                name="Local", description="local", dataset={"path": "local", "revision": "1"},
                type="Retrieval", category="t2t", modalities=["text"], eval_splits=["test"],
                eval_langs=["zho-Hans"], main_score="recall_at_5", **nothing,
            )  # fmt: skip

            def load_data(self, **_: Any) -> None:
                documents = [{**row, "title": ""} for row in rows["corpus"]]
                self.dataset = {"default": {"test": {
                    "corpus": Dataset.from_list(documents), "top_ranked": None,
                    "queries": Dataset.from_list(rows["queries"]), "relevant_docs": relevant,
                }}}  # fmt: skip
                self.data_loaded = True

        class Model:
            mteb_model_meta = ModelMeta.create_empty()

            def encode(self, inputs: Any, **_: Any) -> np.ndarray:
                return vectors([text for batch in inputs for text in batch["text"]])

            def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
                return np.asarray(a) @ np.asarray(b).T

            similarity_pairwise = similarity

        found = mteb.evaluate(Model(), [Local()], cache=None, show_progress_bar=False)
        scores: dict[str, float] = found.task_results[0].scores["test"][0]
        return scores


@pytest.mark.slow
def test_recall_and_mrr_are_mtebs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = by_mteb(folder, monkeypatch)
    asked = read_long_set(str(folder), "local", questions="all", empty_questions="ask")
    ours = next(evaluate_long([asked], vectors)).metrics
    assert 0.1 < ours["recall@1"] < ours["recall@5"] < 0.9
    for name in ("recall@1", "recall@5", "mrr@10"):
        # mteb rounds some of its scores to five digits
        assert ours[name] == pytest.approx(theirs[name.replace("@", "_at_")], abs=1.1e-5)
