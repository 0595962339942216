"""Traditional characters: known where they stand, and written in their simplified form."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from stella_ray.errors import SettingsError
from stella_ray.evaluate.longtext import read_long_set
from stella_ray.evaluate.simplified import is_traditional, simplifier

TEXT = "這個問題來自臺灣的學者，" * 60 + "答案為頭髮"


def test_traditional_texts_are_known_by_their_frequent_words() -> None:
    assert is_traditional(["他們說這個問題"])
    assert not is_traditional(["他们说这个问题", "引文：這"])
    assert not is_traditional(["山水日月"])


def test_without_opencc_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opencc", None)
    with pytest.raises(SettingsError, match=r"pip install 'stella-ray\[evaluate\]'"):
        simplifier()


def saved(folder: Path) -> str:
    answers = [{"text": "頭髮", "answer_start": TEXT.index("頭髮")}]
    qas = [{"id": "a", "question": "答案為何？", "answers": answers}]
    path = folder / "drcd.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": TEXT, "qas": qas}]}]}))
    return str(path)


def test_a_traditional_set_is_asked_in_simplified_characters_at_the_same_places(
    tmp_path: Path,
) -> None:
    pytest.importorskip("opencc")
    found = read_long_set(saved(tmp_path), "drcd")
    (question,) = found.questions
    assert question.text == "答案为何？"
    assert found.documents[0][question.start :] == "头发"
    assert found.counts["documents in simplified characters"] == 1


def test_a_traditional_set_can_be_left_as_it_is(tmp_path: Path) -> None:
    found = read_long_set(saved(tmp_path), "drcd", simplify="no")
    assert found.documents == [TEXT]
