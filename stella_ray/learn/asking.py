"""What a language model is asked: which paragraph, which part of it, and in which words.

Each request is a function of its document and the settings, so that a second run asks the same.
Long paragraphs come first, since short ones are in every data set; and the part asked about is
chosen before asking, since a model left alone asks about the beginning.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stella_ray.errors import SettingsError
from stella_ray.learn.shuffle import hashes, key_of

KINDS = ("question", "sentence")
POSITIONS = ("start", "middle", "end")
"""Which third of the paragraph is asked about."""

BUCKETS = (128, 256, 512, 768)
"""Least characters of the paragraphs of each bucket."""

SPAN = 160
"""Characters of the part that a question is asked about; one longer sentence may have more."""

SENTENCE = (8, 120)
"""Characters of a sentence that can be rewritten."""

_END = re.compile(r"[。！？!?；;\n]+[”’」』）)]*")

SYSTEM = "你为中文检索系统写训练数据。只输出要求的 JSON，不解释。"
_RULES = (
    "要求：\n"
    "1. 单独拿出来也看得懂，写明人名、地名、事物，不用“本文”“上文”“该段”“这”“它”之类的指代；\n"
    "2. 换一种说法，不照抄原文的词句；\n"
    "3. 一行，5 到 64 个字；\n"
)
PROMPTS = {
    "question": "读下面的段落，就“要问的部分”提一个具体、有价值的问题。"
    "读了段落就能回答，只问这一部分讲的事。\n"
    + _RULES
    + '4. 只输出 JSON：{{"question": "……"}}\n\n段落：\n{passage}\n\n要问的部分：\n{span}',
    "sentence": "读下面的段落，把“要改写的句子”用自己的话改写成一句意思相同的话，"
    "像一个人会用来查找这个段落的话。\n"
    + _RULES
    + '4. 只输出 JSON：{{"sentence": "……"}}\n\n段落：\n{passage}\n\n要改写的句子：\n{span}',
}
PROMPT_VERSION = "1-" + hashlib.sha256(json.dumps([SYSTEM, PROMPTS]).encode()).hexdigest()[:8]
"""Follows the words by itself: what was answered to other words isn't taken for this."""


@dataclass(frozen=True, kw_only=True)
class AskSettings:
    """Whom to ask, about what, and how."""

    model: str
    """The model's name at the endpoint; goes into every row."""
    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    """question: (question, paragraph) pairs; sentence: a sentence of the paragraph in other words;
    as words or separated by commas."""
    positions: list[str] = field(default_factory=lambda: list(POSITIONS))
    """Thirds of the paragraph to ask about: start, middle, end; an answer in the last third is what
    encoders of 512 tokens never saw."""
    shortest: int = BUCKETS[0]
    """Characters of a paragraph at least."""
    longest: int = 1_000
    """Characters of a paragraph at most; longer documents are cut behind sentences into several.
    Some 970 tokens of a Chinese vocabulary."""
    shares: list[float] = field(default_factory=lambda: [1.0, 2.0, 3.0, 4.0])
    """How many paragraphs of 128, 256, 512 and 768 characters up are asked about, in proportion."""
    per_document: int = 3
    """Requests about one document at most."""
    temperature: float = 0.7
    """0 gives the same question for many paragraphs; goes into every row."""
    answer_tokens: int = 256
    """Tokens of an answer at most."""
    seed: int = 0
    """Of the choice of paragraphs and parts, and of the model's own seed."""
    extra_body: str = "{}"
    """JSON that is put into each request's body: what a server wants besides, such as
    {"chat_template_kwargs": {"enable_thinking": false}}."""

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        for name, all_of in (("kinds", KINDS), ("positions", POSITIONS)):
            asked = [word.strip() for item in getattr(self, name) for word in item.split(",")]
            object.__setattr__(self, name, asked)  # frozen for everyone but this
            wrong = [word for word in asked if word not in all_of]
            if wrong or not asked or len(set(asked)) < len(asked):
                raise SettingsError(
                    f"ask.{name} {asked} can't be; expected some of {', '.join(all_of)}, each once"
                )
        if not 16 <= self.shortest <= self.longest:
            raise SettingsError(
                f"ask.shortest {self.shortest} and ask.longest {self.longest} leave no paragraph;"
                " expected 16 or more, and shortest below longest"
            )
        if len(self.shares) != len(BUCKETS) or min(self.shares) < 0 or not sum(self.shares) > 0:
            raise SettingsError(
                f"ask.shares {self.shares} can't be; expected {len(BUCKETS)} numbers, not all 0"
            )
        for name in ("per_document", "answer_tokens"):
            if getattr(self, name) < 1:
                raise SettingsError(f"ask.{name} {getattr(self, name)} is too small; expected 1 up")
        if not 0 <= self.temperature <= 2:
            raise SettingsError(f"ask.temperature {self.temperature} can't be; expected 0 to 2")
        try:
            self.body_extras()
        except ValueError as error:
            raise SettingsError(f"ask.extra_body is no JSON object ({error})") from None

    def body_extras(self) -> dict[str, Any]:
        """`extra_body` as a dict; ValueError where it isn't one."""
        found = json.loads(self.extra_body)
        if not isinstance(found, dict):
            raise ValueError(f"found {self.extra_body:.40}")
        return found


@dataclass(frozen=True)
class Request:
    """One question to a model.

    Attributes:
        key: of all that the answer depends on, 32 hex digits.
        doc_id: of the document.
        kind: of `KINDS`.
        position: of `POSITIONS`.
        start: where the span begins in the passage.
        end: and ends.
        passage: the paragraph.
        seed: for the model's own choices, 31 bits.
    """

    key: str
    doc_id: str
    kind: str
    position: str
    start: int
    end: int
    passage: str
    seed: int


def body(request: Request, ask: AskSettings) -> dict[str, Any]:
    """The JSON of a request to /chat/completions."""
    span = request.passage[request.start : request.end]
    words = PROMPTS[request.kind].format(passage=request.passage, span=span.strip())
    return {
        "model": ask.model,
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": words}],
        "temperature": ask.temperature,
        "max_tokens": ask.answer_tokens,
        "seed": request.seed,
        **ask.body_extras(),
    }


def requests_about(
    doc_id: str, text: str, ask: AskSettings
) -> Iterator[tuple[int, float, Request]]:
    """Yield a document's requests with their bucket of length and their place in it, least first.

    Requests of one document differ in the paragraph while there is one left, then in the part. The
    first of every document comes before any document's second.
    """
    found = paragraphs(text, ask.shortest, ask.longest)
    if not found:
        return
    key = key_of("paragraphs", ask.seed, doc_id)
    order = np.argsort(hashes(np.arange(len(found)), key), kind="stable")
    ways = [(kind, position) for position in ask.positions for kind in ask.kinds]
    chance = math.ldexp(int(hashes(np.array([len(found)]), key)[0] >> np.uint64(11)), -53)
    for number in range(min(ask.per_document, len(found) * len(ways))):
        turn, which = divmod(number, len(found))
        passage = found[int(order[which])]
        # Each paragraph begins at a way of its own, so that all ways are as frequent.
        kind, position = ways[(key_of(key, which) + turn) % len(ways)]
        span = target_span(passage, kind, position, key_of(key, number))
        if span is None:
            continue
        bucket = sum(len(passage) >= least for least in BUCKETS[1:])
        yield bucket, number + chance, _request(doc_id, kind, position, span, passage, ask)


def _request(
    doc_id: str, kind: str, position: str, span: tuple[int, int], passage: str, ask: AskSettings
) -> Request:
    seed = key_of("request", ask.seed, doc_id, kind, position, passage) >> 33
    asked = Request("", doc_id, kind, position, *span, passage, seed)
    words = json.dumps([PROMPT_VERSION, body(asked, ask)], ensure_ascii=False, sort_keys=True)
    key = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return Request(key, doc_id, kind, position, *span, passage, seed)


def sentences(text: str) -> list[tuple[int, int]]:
    """The spans of a text's sentences, which together are all of it."""
    ends = [found.end() for found in _END.finditer(text)]
    if not ends or ends[-1] < len(text):
        ends.append(len(text))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def paragraphs(text: str, shortest: int, longest: int) -> list[str]:
    """Cut a text behind sentences into about equal parts of so many characters.

    A part without an end of a sentence in reach is cut where it must; one that is too short is
    left out.
    """
    text = text.strip()
    count = -(-len(text) // longest)
    out: list[str] = []
    ends = [end for _, end in sentences(text)]
    start = 0
    while start < len(text):
        # Even shares of what is left, so that the last isn't a scrap.
        count = max(count, -(-(len(text) - start) // longest))
        wanted = start + -(-(len(text) - start) // count)
        within = ends[bisect_right(ends, start) : bisect_right(ends, start + longest)]
        end = min(within, key=lambda end: abs(end - wanted)) if within else wanted
        out.append(text[start:end].strip())
        start, count = end, max(1, count - 1)
    return [part for part in out if len(part) >= shortest]


def target_span(passage: str, kind: str, position: str, key: int) -> tuple[int, int] | None:
    """The part of a passage's third that is asked about: whole sentences whose middle lies there.

    A question is about sentences in a row, up to `SPAN` characters, from one chosen by `key` on; a
    sentence is one of `SENTENCE` characters. None where the third has none.
    """
    third = POSITIONS.index(position)
    low, high = len(passage) * third / 3, len(passage) * (third + 1) / 3
    there = [(a, b) for a, b in sentences(passage) if low <= (a + b) / 2 < high]
    there = [(a, b) for a, b in there if len(passage[a:b].strip()) >= SENTENCE[0]]
    if kind == "sentence":
        there = [(a, b) for a, b in there if len(passage[a:b].strip()) <= SENTENCE[1]]
    if not there:
        return None
    first = key % len(there)
    start, end = there[first]
    if kind == "question":
        for a, b in there[first + 1 :]:
            if a != end or b - start > SPAN:
                break
            end = b
    return start, end
