"""C-MTEB's tasks: the 35 of the model card, and which of them are mteb's own `MTEB(cmn, v1)`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stella_ray.encode.models import BGE_QUERY, EncoderSpec
from stella_ray.errors import SettingsError

TaskType = Literal[
    "Classification", "Clustering", "PairClassification", "Reranking", "Retrieval", "STS"
]

MAIN = {
    "Classification": ("accuracy", "accuracy"),
    "Clustering": ("v_measure", "v_measure"),
    "PairClassification": ("cosine_ap", "cos_sim_ap"),
    "Reranking": ("map_at_1000", "map"),
    "Retrieval": ("ndcg_at_10", "ndcg_at_10"),
    "STS": ("cosine_spearman", "cos_sim_spearman"),
}
"""The card's main metric of each type: as mteb 2 calls it, and as the card does. mteb's own differ
for pairs, where it takes the accuracy at the best threshold of the best of five distances."""

MTEB_MAIN = "mteb_main_score"
"""What `MTEB(cmn, v1)` counts, as a metric beside the card's: a mean over mteb's own splits."""

MTEB_NAME = "MTEB(cmn, v1)"


@dataclass(frozen=True)
class Task:
    """One of the 35.

    Attributes:
        name: mteb's.
        type: decides the protocol and the main metric.
        split: the card's.
        subset: of a set in several languages.
        mteb_splits: those that `MTEB(cmn, v1)` takes; none where the task isn't among its 31.
        scores: the least and the highest score of STS.
    """

    name: str
    type: TaskType
    split: str
    subset: str = "default"
    mteb_splits: tuple[str, ...] = ()
    scores: tuple[float, float] = (0, 1)

    @property
    def metric(self) -> str:
        """The card's main metric, by mteb's name."""
        return MAIN[self.type][0]


def _among_31(name: str, kind: TaskType, split: str, *others: str, highest: float = 1) -> Task:
    return Task(name, kind, split, mteb_splits=(split, *others), scores=(0, highest))


CMTEB: dict[str, Task] = {
    task.name: task
    for task in (
        Task("AmazonReviewsClassification", "Classification", "test", "zh"),
        _among_31("IFlyTek", "Classification", "validation"),
        _among_31("JDReview", "Classification", "test"),
        Task("MassiveIntentClassification", "Classification", "test", "zh-CN"),
        Task("MassiveScenarioClassification", "Classification", "test", "zh-CN"),
        _among_31("MultilingualSentiment", "Classification", "validation", "test"),
        _among_31("OnlineShopping", "Classification", "test"),
        _among_31("TNews", "Classification", "validation"),
        _among_31("Waimai", "Classification", "test"),
        _among_31("CLSClusteringP2P", "Clustering", "test"),
        _among_31("CLSClusteringS2S", "Clustering", "test"),
        _among_31("ThuNewsClusteringP2P", "Clustering", "test"),
        _among_31("ThuNewsClusteringS2S", "Clustering", "test"),
        _among_31("Cmnli", "PairClassification", "validation"),
        _among_31("Ocnli", "PairClassification", "validation"),
        _among_31("CMedQAv1-reranking", "Reranking", "test"),
        _among_31("CMedQAv2-reranking", "Reranking", "test"),
        _among_31("MMarcoReranking", "Reranking", "dev"),
        _among_31("T2Reranking", "Reranking", "dev"),
        _among_31("CmedqaRetrieval", "Retrieval", "dev"),
        _among_31("CovidRetrieval", "Retrieval", "dev"),
        _among_31("DuRetrieval", "Retrieval", "dev"),
        _among_31("EcomRetrieval", "Retrieval", "dev"),
        _among_31("MMarcoRetrieval", "Retrieval", "dev"),
        _among_31("MedicalRetrieval", "Retrieval", "dev"),
        _among_31("T2Retrieval", "Retrieval", "dev"),
        _among_31("VideoRetrieval", "Retrieval", "dev"),
        _among_31("AFQMC", "STS", "validation"),
        _among_31("ATEC", "STS", "test"),
        _among_31("BQ", "STS", "test"),
        _among_31("LCQMC", "STS", "test"),
        _among_31("PAWSX", "STS", "test"),
        _among_31("QBQTC", "STS", "test", highest=2),
        Task("STS22", "STS", "test", "zh", scores=(1, 4)),
        _among_31("STSB", "STS", "test", highest=5),
    )
}


def find_tasks(names: Sequence[str], others: Sequence[str] = ()) -> list[str]:
    """Names as they are spelled, in the order given; case doesn't matter.

    Args:
        names: of tasks, or of `others`.
        others: names beside the 35 that may be asked for.

    Raises:
        SettingsError: an unknown one, with the nearest known.
    """
    known = {name.lower(): name for name in (*CMTEB, *others)}
    found, unknown = [], []
    for name in names:
        if name.lower() in known:
            found.append(known[name.lower()])
            continue
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
        unknown.append(f"{name!r}" + (f" (did you mean {known[near[0]]}?)" if near else ""))
    if unknown:
        raise SettingsError(
            f"unknown task {', '.join(unknown)}; expected a suite or names of {', '.join(CMTEB)}"
            + (f"; {', '.join(others)}" if others else "")
        )
    return list(dict.fromkeys(found))


PrefixRule = Literal["auto", "none", "retrieval", "retrieval_and_reranking"]


def resolve_prefixes(rule: PrefixRule, spec: EncoderSpec) -> PrefixRule:
    """Which types of tasks have the encoder's prefixes.

    auto is what the published figures were made with: piccolo's and stella's own (查询: , 结果: )
    on retrieval alone, bge's instruction on the queries of retrieval and reranking, and for any
    other encoder the same two types, which is what mteb does with a folder's prompts.
    """
    if rule != "auto":
        return rule
    if not spec.query_prefix and not spec.passage_prefix:
        return "none"
    if spec.query_prefix == BGE_QUERY or not spec.query_prefix.startswith("查询"):
        return "retrieval_and_reranking"
    return "retrieval"


def prefixes_of(task: Task, rule: PrefixRule, spec: EncoderSpec) -> dict[str, str]:
    """What stands before a task's queries and passages; empty texts where nothing does."""
    with_them = {"retrieval": ("Retrieval",), "retrieval_and_reranking": ("Retrieval", "Reranking")}
    if task.type not in with_them.get(resolve_prefixes(rule, spec), ()):
        return {"query": "", "document": ""}
    return {"query": spec.query_prefix, "document": spec.passage_prefix}
