"""Chinese by table gives the library's own token ids, whatever stands between the characters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, Whitespace
from tokenizers.processors import TemplateProcessing

from stella_ray.encode.tokens import RUNS_KEPT, SIGNS, TextTokenizer
from tests.conftest import HAN

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *HAN[:500], *"，。！？abc123", "##b", "##2", "e", "豈"]


def make(
    folder: Path, *, lowercase: bool = True, words: bool = False, chinese: bool = True
) -> Path:
    """A BERT tokenizer; with `words`, added tokens too, one of Chinese characters."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=lowercase, handle_chinese_chars=chinese)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    if words:
        tokenizer.add_tokens([HAN[3] + HAN[4], AddedToken("c，", lstrip=True)])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module", params=["lowercase", "cased", "words"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = request.param
    folder = tmp_path_factory.mktemp("bert") / kind
    return make(folder, lowercase=kind != "cased", words=kind == "words")


def library(found: TextTokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in found._tokenizer.encode_batch(texts)]


def ours(found: TextTokenizer, texts: list[str]) -> list[list[int]]:
    ragged = found(texts)
    return [part.tolist() for part in np.split(ragged.values, ragged.offsets[1:-1])]


odd = st.sampled_from(
    [*"aAbBcC123 \t\n\0é豈\uf900々ー～＋，。", "e\u0301", "\u0301", "\u200b", "\ufffd", "\u2028",
     "𠀀", "[SEP]", "[", "]", "##b", HAN[3] + HAN[4], "c，", "İ", "ß", "٣", "한", "ｶﾞ", "👍🏽"]
)  # fmt: skip
chinese = st.sampled_from([*HAN[:20], HAN[700], *SIGNS])
anything = chinese | chinese | chinese | odd | st.characters(exclude_categories=["Cs"])
some_texts = st.lists(st.lists(anything, max_size=25).map("".join), max_size=4)


@settings(deadline=None, max_examples=150)
@given(texts=some_texts)
def test_ids_are_the_library_s_own(tokenizer: Path, texts: list[str]) -> None:
    found = TextTokenizer(tokenizer, 1_024)
    assert found._lone is not None
    if texts:
        assert ours(found, texts) == library(found, texts)


def test_every_character_of_the_table_is_a_word_of_its_own(tokenizer: Path) -> None:
    found = TextTokenizer(tokenizer, 1_024)
    assert found._lone is not None
    letters = [chr(code) for code in np.flatnonzero(found._lone >= 0).tolist()]
    assert len(letters) > 27_000
    ids = found._lone[[ord(letter) for letter in letters]].tolist()
    # Alone; and beside a letter, another, a digit with an accent, and itself.
    for context, times in (("{0}", 1), ("a{0}b 一{0}一 1{0}\u0301 {0}{0}", 5)):
        texts = [context.format(letter) for letter in letters]
        plain = library(found, texts)
        assert all(there.count(one) >= times for one, there in zip(ids, plain, strict=True))
        assert ours(found, texts) == plain


def test_other_tokenizers_are_left_to_the_library(tmp_path: Path) -> None:
    assert TextTokenizer(make(tmp_path / "plain", chinese=False), 9)._lone is None
    folder = make(tmp_path / "blanks")
    other = Tokenizer.from_file(str(folder / "tokenizer.json"))
    other.pre_tokenizer = Whitespace()
    other.save(str(folder / "tokenizer.json"))
    assert TextTokenizer(folder, 9)._lone is None


def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    found = TextTokenizer(make(tmp_path / "bert"), 1_024)
    texts = [f"一二三四五六七{i}" for i in range(RUNS_KEPT + 9)]
    for start in range(0, len(texts), 4_096):
        found(texts[start : start + 4_096])
    assert len(found._runs) <= RUNS_KEPT
    found(["一" * 99 + "a" * 50])
    assert "a" * 50 not in found._runs
