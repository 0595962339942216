"""Which of a language model's answers become training pairs; pure functions, one for each reason.

In the order in which they are asked, cheap ones first; an answer is rejected for the first reason
that holds. A pair that passes all of them may still be wrong: see what the rejects file holds.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from stella_ray.learn.ngrams import plain, shingles

SHORTEST, LONGEST = 5, 64
"""Characters of a query, spaces left out."""

LEAST_CHINESE = 0.5
"""Share of a query's letters that are Chinese; names and numbers may be of another script."""

MOST_COPIED = 0.6
"""Share of a query that may stand in the passage in one piece."""

SAME = 0.8
"""Containment from which two questions count as the same."""

REASONS = ("cut off", "form", "length", "language", "pronoun", "copied", "round trip", "duplicate")
"""cut off: the answer ended at answer_tokens or was withheld; form: not the JSON asked for, nor one
line; pronoun: 本文, 该段 and the like; copied: too much of it stands in the passage in one piece;
round trip: the encoder doesn't find the passage by it; duplicate: nearly the same as another."""

_POINTS = re.compile(
    r"(?<![日基版样剧课译范])本文(?![化明件字物艺学])|[上下]文(?![件化字物艺学人明献])|[该这此本][段篇]|该文(?![化件物])|"
    r"(?<![中英论作语课散古诗日法德俄外译天水])文中(?![国华医])|[这此该]文章|上述|段落|原文|"
    r"以上(?:内容|信息|文字)|根据(?:内容|文字)"
)
"""本文, 该段 and their like, and none of 日本文化, 基本文件, 地下文物 or 论文中."""
_FENCE = re.compile(r"^```\w*\s*|\s*```$")
_THOUGHT = re.compile(r"^.*</think>", re.DOTALL)
_LABEL = re.compile(r"^(?:问题|问|句子|改写|答)\s*[:：]\s*")
_QUOTES = "\"'“”‘’「」『』"


def query_in(raw: str, kind: str) -> str | None:
    """The query in an answer: of the JSON asked for, or of one line; None where it is neither.

    A reasoning model's thoughts and a fence around the JSON are passed over.
    """
    text = _FENCE.sub("", _THOUGHT.sub("", raw).strip()).strip()
    if text.startswith(("{", "[")):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
        found = found.get(kind) if isinstance(found, dict) else None
        if not isinstance(found, str):
            return None
        text = found.strip()
    if not text or "\n" in text or "\r" in text:
        return None
    return _LABEL.sub("", text).strip(_QUOTES).strip() or None


def chinese_share(text: str) -> float:
    """Share of a text's letters that are Chinese characters; digits and marks don't count."""
    letters = [c for c in text if c.isalpha()]
    return sum("\u3400" <= c <= "\u9fff" for c in letters) / len(letters) if letters else 0.0


def longest_common(query: str, passage: str) -> int:
    """Characters of the longest piece of `query` that stands in `passage`."""
    low, high = 0, len(query)
    while low < high:  # a piece of a piece that stands there stands there too
        middle = (low + high + 1) // 2
        pieces = (query[i : i + middle] for i in range(len(query) - middle + 1))
        if any(piece in passage for piece in pieces):
            low = middle
        else:
            high = middle - 1
    return low


def fault_of(query: str, passage: str) -> str | None:
    """Why a query can't be one, of `REASONS`, as far as it and its passage tell."""
    short = plain(query)
    if not SHORTEST <= len(short) <= LONGEST:
        return "length"
    if chinese_share(query) < LEAST_CHINESE:
        return "language"
    if _POINTS.search(query):
        return "pronoun"
    if longest_common(short, plain(passage)) >= MOST_COPIED * len(short):
        return "copied"
    return None


@dataclass(frozen=True)
class Verdict:
    """What an answer gave: a query, or a reason of `REASONS` (and then maybe a query)."""

    query: str | None
    reason: str | None


def judge(raw: str, finish: str, kind: str, passage: str) -> Verdict:
    """Judge an answer by itself; round trip and duplicates need the others.

    Args:
        raw: the model's words.
        finish: the server's finish_reason: `stop` where the model ended by itself.
        kind: question or sentence.
        passage: what it was asked about.
    """
    if finish in ("length", "content_filter"):
        return Verdict(None, "cut off")
    query = query_in(raw, kind)
    return Verdict(query, "form" if query is None else fault_of(query, passage))


class Seen:
    """The queries accepted so far, by the strings of five characters in them."""

    def __init__(self) -> None:
        self._plain: set[str] = set()
        self._holders: dict[int, list[int]] = defaultdict(list)
        self._sizes: list[int] = []

    def add(self, query: str) -> bool:
        """Take a query unless it is nearly one that was taken; whether it was."""
        own = plain(query)
        if own in self._plain:
            return False
        marks = shingles(query).tolist()
        shared: dict[int, int] = defaultdict(int)
        for mark in marks:
            for number in self._holders.get(mark, ()):
                shared[number] += 1
        for number, count in shared.items():
            if count >= SAME * min(self._sizes[number], len(marks)):
                return False
        for mark in marks:
            self._holders[mark].append(len(self._sizes))
        self._sizes.append(len(marks))
        self._plain.add(own)
        return True


def ranks(
    queries: np.ndarray, passages: np.ndarray, own: np.ndarray, pool: np.ndarray, block: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """At which place each query finds its own passage among a pool, from 1; and their similarity.

    Args:
        queries: unit vectors, float32 [Q, dim].
        passages: of each query's own passage, float32 [Q, dim].
        own: the place of that passage in the pool, which isn't compared with itself, -1 where it
            isn't in it, int64 [Q].
        pool: unit vectors of passages, float32 [P, dim].
        block: queries at a time.

    Returns:
        int64 [Q], float32 [Q].
    """
    similar = np.einsum("qd,qd->q", queries, passages)
    place = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        scores = queries[rows] @ pool.T
        there = np.flatnonzero(own[rows] >= 0)
        scores[there, own[rows][there]] = -np.inf
        place[rows] = 1 + (scores > similar[rows, None]).sum(1)
    return place, similar


def counted(reasons: Iterable[str | None]) -> dict[str, int]:
    """How many were rejected for each reason, all reasons named."""
    counts = dict.fromkeys(REASONS, 0)
    for reason in reasons:
        if reason is not None:
            counts[reason] += 1
    return counts
