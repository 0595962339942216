"""Questions about documents, with where in the document the answer stands; and which to ask.

The rule is that of stella's model card: questions whose answer lies past 512 characters, and others
undersampled so that there are two of them for each (长短文本占比约为1:2).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from stella_ray.errors import CorpusError, brief
from stella_ray.learn.shuffle import key_of
from stella_ray.storage import StorageSettings

LONG_TEXT = "LongText"
"""The type of such tasks."""

LONG_FROM = 512
"""Characters before an answer from which on a question is long."""

EDGES = (0, 128, 256, 512, 1024)
BUCKETS = ("0-128", "128-256", "256-512", "512-1024", "1024+")
UNKNOWN = "unknown"
"""Where the answer's place isn't known."""

EmptyQuestions = Literal["refuse", "leave_out", "ask"]
"""What to do with a question without a text: CMRC2018's trial set has one, and mteb asks it."""

Answers = Sequence[tuple[str, int | None]]
"""Each annotator's answer and where it is said to start: -1 for nowhere, None where it isn't said;
a text of "" stands for a place alone."""


def bucket(start: int) -> str:
    """The name of the bucket of answers that start there; -1 is nowhere known."""
    return next((BUCKETS[i] for i in range(4, -1, -1) if start >= EDGES[i]), UNKNOWN)


@dataclass(frozen=True)
class Asked:
    """A question as it was read.

    Attributes:
        name: its id.
        text: of the question.
        relevance: by document's number.
        answers: by document's number, in the order in which documents are named.
        row: its JSON object.
        where: file and line, or path in the tree.
    """

    name: str
    text: str
    relevance: Mapping[int, int]
    answers: Mapping[int, Answers]
    row: Mapping[str, Any]
    where: str


@dataclass
class RawSet:
    """A set as it was read: distinct documents, questions, and what was passed over, counted."""

    documents: list[str] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Reading:
    """How a set is read.

    Attributes:
        storage: where S3 is.
        empty_questions: what to do with a question without a text.
        convert: what to do with every document, question and answer.
    """

    storage: StorageSettings = StorageSettings()
    empty_questions: EmptyQuestions = "refuse"
    convert: Callable[[str], str] = str

    def question(self, text: Any, where: str, counts: Counter[str]) -> str | None:
        """The question's text, None if it is to be left out.

        Raises:
            CorpusError: it is no text, or an empty one that is refused.
        """
        if not isinstance(text, str) or (not text.strip() and self.empty_questions == "refuse"):
            raise CorpusError(
                f"{where}: the question is {brief(text, 40)}, expected a text that isn't empty;"
                " with empty_questions leave_out those are left out, with ask they are asked"
            )
        if not text.strip():
            counts["questions without a text"] += 1
            if self.empty_questions == "leave_out":
                return None
        return self.convert(text)


@dataclass(frozen=True)
class Question:
    """One that is asked: `start` is where its answer begins, in characters; -1 if nowhere known."""

    name: str
    text: str
    relevance: Mapping[int, int]
    start: int


@dataclass(frozen=True)
class LongSet:
    """Documents, and the questions that the rule chose.

    Attributes:
        name: of the set.
        documents: distinct texts.
        questions: in the order of their ids.
        counts: what was read, changed, passed over and left out.
    """

    name: str
    documents: list[str]
    questions: list[Question]
    counts: dict[str, int]

    @property
    def revision(self) -> str:
        """A digest of what is asked of which documents."""
        asked = [[q.name, q.text, sorted(q.relevance.items()), q.start] for q in self.questions]
        return hashlib.sha256(orjson.dumps([self.documents, asked])).hexdigest()


def locate(text: str, answers: Answers) -> tuple[int, bool]:
    """Where in a document the answer starts, and whether it stands there as was said.

    What doesn't stand where it is said to is looked for, nearest to that place first; then once
    more without regard to spaces. Of several annotators' answers the first place counts.

    Returns:
        The start in characters, -1 where no answer is in the text.
    """
    right = [
        start
        for answer, start in answers
        if start is not None and 0 <= start < len(text) and text.startswith(answer, start)
    ]
    if right:
        return min(right), True
    found = [
        place
        for answer, start in answers
        if answer and start != -1 and (place := _nearest(text, answer, start or 0)) >= 0
    ]
    return min(found, default=-1), all(start is None for _, start in answers)


def _nearest(text: str, answer: str, start: int) -> int:
    """The occurrence of `answer` nearest to `start`, -1 where there is none."""
    place = _closest(text, answer, start)
    if place >= 0:
        return place
    kept = [at for at, character in enumerate(text) if not character.isspace()]
    plain, bare = "".join(text[at] for at in kept), "".join(answer.split())
    if not bare:
        return -1
    before = sum(at < start for at in kept)
    place = _closest(plain, bare, before)
    return kept[place] if place >= 0 else -1


def _closest(text: str, answer: str, start: int) -> int:
    behind, ahead = text.rfind(answer, 0, start + len(answer)), text.find(answer, start)
    both = [place for place in (behind, ahead) if place >= 0]
    return min(both, key=lambda place: abs(place - start), default=-1)


def choose(raw: RawSet, name: str, questions: str, short_per_long: float, seed: int) -> LongSet:
    """The questions to ask.

    Args:
        raw: what was read.
        name: of the set.
        questions: rule: long ones and, of the short ones, `short_per_long` for each long one;
            all: every one, also where the answer's place isn't known; else the name of a field of
            the questions that is true where one is to be asked.
        short_per_long: of the rule.
        seed: of the undersampling, which goes by a hash of the question's id: neither the order of
            the file nor other questions' ids change a short one's turn.

    Raises:
        CorpusError: nothing is left to ask, or the field isn't one of true and false.
    """
    counts, found = Counter(raw.counts), []
    for one in raw.asked:
        places = [(*locate(raw.documents[at], said), at) for at, said in one.answers.items()]
        # A question about several documents: the one where the answer stands as was said.
        start, right = next(
            ((start, ok) for start, ok, _ in places if ok and start >= 0),
            next(((start, ok) for start, ok, _ in places if start >= 0), (-1, False)),
        )
        counts["answers found elsewhere than said"] += start >= 0 and not right
        counts["answers not in the text"] += start < 0
        found.append((one, Question(one.name, one.text, one.relevance, start)))
    if questions == "all":
        asked = [question for _, question in found]
    elif questions == "rule":
        asked = _by_rule([question for _, question in found], name, short_per_long, seed)
    else:
        asked = [question for one, question in found if _flag(one, questions)]
    if not asked:
        raise CorpusError(f"set {name}: no question is left to ask of {len(raw.asked)} read")
    starts = [question.start for question in asked]
    counts |= {
        "documents": len(raw.documents),
        "questions read": len(raw.asked),
        "questions": len(asked),
        "long": sum(start >= LONG_FROM for start in starts),
        "short": sum(0 <= start < LONG_FROM for start in starts),
    }
    asked.sort(key=lambda question: question.name)
    return LongSet(name, raw.documents, asked, {k: v for k, v in counts.items() if v})


def _by_rule(
    questions: Sequence[Question], name: str, short_per_long: float, seed: int
) -> list[Question]:
    long = [question for question in questions if question.start >= LONG_FROM]
    if not long:
        raise CorpusError(
            f"set {name}: no answer lies past {LONG_FROM} characters in {len(questions)} questions;"
            " expected long documents, or ask every question (questions all)"
        )
    short = [question for question in questions if 0 <= question.start < LONG_FROM]
    turn: Callable[[Question], int] = lambda question: key_of(seed, question.name)  # noqa: E731
    return long + sorted(short, key=turn)[: round(short_per_long * len(long))]


def _flag(one: Asked, name: str) -> bool:
    value = one.row.get(name)
    if not isinstance(value, bool):
        raise CorpusError(
            f"{one.where}: {name} is {brief(value, 40)}, expected true or false; questions is rule,"
            " all or the name of such a field"
        )
    return value
