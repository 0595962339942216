"""BM25 and reciprocal rank fusion on rankings small enough to be right by eye."""

from __future__ import annotations

import math

import numpy as np

from stella_ray.evaluate.baselines import bm25, fuse, pairs

DOCUMENTS = ["黄河在冬天断流", "长江的水量大", "冬天的长江", "，。"]


def test_bm25_ranks_by_shared_pairs_of_characters_and_leaves_the_others_out() -> None:
    assert bm25(["冬天的黄河", "海"], DOCUMENTS, 3).tolist() == [[2, 0, -1], [-1, -1, -1]]


def test_bm25_reads_letters_and_digits_as_characters_too() -> None:
    assert bm25(["张x1的债"], ["被告张x2欠款", "原告张x1"], 2).tolist() == [[1, 0]]


def test_bm25_is_lucenes_formula_with_a_k1_of_1_2() -> None:
    documents = ["丁甲丁乙丙丙丁甲戊", "甲乙甲乙"]  # a k1 of 1.5 puts them the other way round
    assert by_formula("甲乙丙丁", documents, 1.2) == [0, 1]
    assert by_formula("甲乙丙丁", documents, 1.5) == [1, 0]
    assert bm25(["甲乙丙丁"], documents, 2).tolist() == [[0, 1]]


def by_formula(query: str, documents: list[str], k1: float) -> list[int]:
    cut = [pairs(text) for text in documents]
    average = sum(map(len, cut)) / len(cut)
    scores = [0.0] * len(cut)
    for pair in pairs(query):
        n = sum(pair in document for document in cut)
        idf = math.log(1 + (len(cut) - n + 0.5) / (n + 0.5))
        for i, document in enumerate(cut):
            tf = document.count(pair)
            scores[i] += idf * tf / (tf + k1 * (0.25 + 0.75 * len(document) / average))
    return sorted(range(len(cut)), key=lambda i: -scores[i])


def test_fusion_sums_one_over_sixty_and_the_rank() -> None:
    a = np.array([[4, 2, 9]])
    b = np.array([[2, 7, -1, -1]])
    # 2: 1/62 + 1/61; 4: 1/61; 7: 1/62; 9: 1/63
    assert fuse([a, b], 5).tolist() == [[2, 4, 7, 9, -1]]
    assert fuse([a, b], 2).tolist() == [[2, 4]]


def test_equal_fused_scores_stand_in_the_order_of_documents() -> None:
    assert fuse([np.array([[5, 3]]), np.array([[3, 5]])], 2).tolist() == [[3, 5]]
    assert fuse([np.array([[8]]), np.array([[1]])], 2).tolist() == [[1, 8]]
