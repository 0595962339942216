"""Text to ids: the same as transformers' own truncation, without reading a long text whole."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertTokenizer

from stella_ray.encode.tokens import CHARACTERS_PER_TOKEN, SETTLED, Ragged, TextTokenizer
from stella_ray.errors import ModelError
from tests.conftest import HAN, write

PREFIXES = ["", "查询: ", "世: ", "passage: "]
ODD = ["👩\u200d👩\u200d👧", "🀄", "e\u0301", "ＡＢ", "ﬁ", "\u200b", "\ufeff", "\x00", "\ufffd"]
ODD += ["[SEP]", "[MASK]"]
TEXTS = st.lists(
    st.one_of(
        st.text(HAN[:50], max_size=40),
        st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=130),
        st.text("àéîõüçñÅßıſ", max_size=9),
        st.sampled_from(ODD),
        st.text(" \t\r\n\u3000\xa0", max_size=20),
        st.text(max_size=10),
    ),
    max_size=30,
).map("".join)
LONG = {
    "one_word": "a" * 5_000,
    "one_letter_repeated_in_chinese": "中" * 9_000,
    "spaces": " " * 10_000,
    "spaces_then_words": " " * 10_000 + "三 abc",
    "words_then_spaces": "三 abc" + "\n" * 10_000 + "末",
    "words_of_the_longest_length": ("x" * 100 + " ") * 40,
    "words_too_long_by_one": ("x" * 101 + " ") * 80,
    "accents_on_one_letter": "e" + "\u0301" * 3_000 + "三",
    "special_tokens": "[SEP]" * 600,
    "what_is_not_a_character": "\x00\ufeff" * 4_000 + "三",
    "families": ODD[0] * 800,
    "mixed": "".join(f"{HAN[i % 900]}第{i}章 chapter{i} " for i in range(500)),
}


@functools.cache
def ours(folder: Path, max_tokens: int) -> TextTokenizer:
    return TextTokenizer(folder, max_tokens)


@functools.cache
def theirs(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(folder))


def ids(rows: Ragged) -> list[list[int]]:
    return [row.tolist() for row in np.split(rows.values, rows.offsets[1:-1])]


def assert_same(folder: Path, texts: Sequence[str], prefix: str, max_tokens: int) -> None:
    """Ids, the flag and the shapes are those of transformers."""
    rows = ours(folder, max_tokens)(texts, prefix)
    first = [prefix + text for text in texts]
    assert ids(rows) == theirs(folder)(first, truncation=True, max_length=max_tokens).input_ids
    whole = [len(row) for row in theirs(folder)(first).input_ids]
    assert rows.truncated.tolist() == [length > max_tokens for length in whole]
    assert rows.lengths.tolist() == [min(length, max_tokens) for length in whole]
    assert (rows.offsets[0], rows.offsets[-1]) == (0, len(rows.values))


def bert_folder(folder: Path, size: int) -> Path:
    """A BERT tokenizer of `size` tokens, the last one `末`."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"unused{i}" for i in range(size - 6)] + ["末"]
    BertTokenizer({word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("max_tokens", [8, 16, 64])
@given(texts=st.lists(TEXTS, min_size=1, max_size=6), prefix=st.sampled_from(PREFIXES))
@example(texts=["", "a", " "], prefix="世: ")
@settings(max_examples=40, deadline=None)
def test_any_text_gives_the_ids_that_transformers_gives(
    tiny_encoder: Path, max_tokens: int, texts: list[str], prefix: str
) -> None:
    assert_same(tiny_encoder, texts, prefix, max_tokens)


@given(texts=st.lists(TEXTS, min_size=1, max_size=6), prefix=st.sampled_from(PREFIXES))
@settings(max_examples=40, deadline=None)
def test_any_text_gives_the_ids_that_transformers_gives_with_a_unigram_tokenizer(
    xlmr_encoder: Path, texts: list[str], prefix: str
) -> None:
    assert_same(xlmr_encoder, texts, prefix, 16)


@pytest.mark.parametrize("max_tokens", [8, 16, 512])
@pytest.mark.parametrize("name", LONG)
def test_a_text_far_above_max_tokens_gives_the_ids_that_transformers_gives(
    tiny_encoder: Path, name: str, max_tokens: int
) -> None:
    assert_same(tiny_encoder, [LONG[name], "三"], "", max_tokens)
    assert_same(tiny_encoder, [LONG[name]], "世: ", max_tokens)


def test_texts_of_every_length_around_the_cut_are_cut_where_transformers_cuts(
    tiny_encoder: Path,
) -> None:
    reach = 8 * CHARACTERS_PER_TOKEN
    texts = ["".join(HAN[:n]) for n in [*range(12), *range(reach - 2, reach + SETTLED + 3)]]
    assert_same(tiny_encoder, texts, "", 8)


def test_no_texts_give_no_rows(tiny_encoder: Path) -> None:
    rows = ours(tiny_encoder, 16)([])
    assert (len(rows.values), rows.offsets.tolist(), len(rows.truncated)) == (0, [0], 0)


class Counting:
    """Stands before a tokenizer and counts the characters it's given."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.characters, self.calls = tokenizer, 0, 0

    def encode_batch_fast(self, texts: list[str]) -> Any:
        self.calls += 1
        self.characters += sum(map(len, texts))
        return self.tokenizer.encode_batch_fast(texts)


def test_a_document_of_a_megabyte_is_not_tokenised_whole(tiny_encoder: Path) -> None:
    tokenizer = TextTokenizer(tiny_encoder, 512)
    counting = tokenizer._tokenizer = Counting(tokenizer._tokenizer)
    megabyte = "".join(HAN[:1_000]) * 1_000
    rows = tokenizer([megabyte, "三"], "世: ")
    assert counting.calls == 1
    assert counting.characters < 512 * CHARACTERS_PER_TOKEN + 20
    assert rows.truncated.tolist() == [True, False]


def test_only_the_texts_whose_first_characters_gave_too_few_tokens_are_read_further(
    tiny_encoder: Path,
) -> None:
    tokenizer = TextTokenizer(tiny_encoder, 512)
    counting = tokenizer._tokenizer = Counting(tokenizer._tokenizer)
    tokenizer([" " * 100_000 + "三", "".join(HAN[:1_000]) * 1_000])
    reach = 512 * CHARACTERS_PER_TOKEN
    assert counting.calls == 7  # 2,048 doubled until it holds 100,001
    assert counting.characters < reach + 2 * 131_072


@pytest.mark.parametrize(("size", "kind"), [(65_536, np.uint16), (65_537, np.int32)])
def test_ids_take_two_bytes_while_the_vocabulary_allows_it(
    tmp_path: Path, size: int, kind: type
) -> None:
    tokenizer = TextTokenizer(bert_folder(tmp_path, size), 8)
    rows = tokenizer(["末"])
    assert tokenizer.id_type is kind
    assert rows.values.dtype == kind
    assert rows.values.tolist() == [2, size - 1, 3]


def copy_with(source: Path, folder: Path, *, config: dict[str, Any], file: dict[str, Any]) -> Path:
    """The tokenizer of `source` with other flags in tokenizer_config.json and tokenizer.json."""
    shutil.copytree(source, folder)
    old = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    new = {key: value for key, value in (old | config).items() if value != "absent"}
    write(folder / "tokenizer_config.json", new)
    whole = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    whole["normalizer"] |= file
    write(folder / "tokenizer.json", whole)
    return folder


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("do_lower_case", [True, False, "absent"])
@pytest.mark.parametrize("kind", ["BertTokenizer", "PreTrainedTokenizerFast", "absent"])
def test_where_the_two_files_disagree_on_lower_case_transformers_is_followed(
    tiny_encoder: Path, tmp_path: Path, lowercase: bool, do_lower_case: Any, kind: str
) -> None:
    config = {"do_lower_case": do_lower_case, "tokenizer_class": kind}
    folder = copy_with(
        tiny_encoder, tmp_path / "mixed", config=config, file={"lowercase": lowercase}
    )
    assert_same(folder, ["ABC abc Café 三X"], "Query: ", 512)


@pytest.mark.parametrize(
    ("config", "file"),
    [
        ({"strip_accents": False}, {}),
        ({"strip_accents": "absent"}, {"strip_accents": False}),
        ({"tokenize_chinese_chars": False}, {}),
        ({"tokenize_chinese_chars": "absent"}, {"handle_chinese_chars": False}),
        ({}, {"clean_text": False}),
    ],
)
def test_where_the_two_files_disagree_on_another_flag_transformers_is_followed(
    tiny_encoder: Path, tmp_path: Path, config: dict[str, Any], file: dict[str, Any]
) -> None:
    folder = copy_with(tiny_encoder, tmp_path / "mixed", config=config, file=file)
    assert_same(folder, ["Café 三中x\x00 \ufffdy"], "", 512)


def test_a_folder_with_vocab_txt_alone_gives_the_same_ids(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    words = theirs(tiny_encoder).get_vocab()
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(words, key=words.get)), encoding="utf-8")
    for name in ("tokenizer_config.json", "config.json"):
        shutil.copy(tiny_encoder / name, tmp_path)
    texts = ["三 ABC é", LONG["mixed"], ""]
    assert ids(TextTokenizer(tmp_path, 64)(texts)) == ids(ours(tiny_encoder, 64)(texts))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"model": {}}', "\x00\x01"])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_cannot_be_read_is_a_model_error_of_one_line(
    tiny_encoder: Path, tmp_path: Path, file: str, damage: str
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_encoder, folder)
    (folder / file).write_text(damage, encoding="utf-8")
    if (file, damage) == ("tokenizer_config.json", '{"model": {}}'):
        return  # a config like another
    with pytest.raises(ModelError, match="the tokenizer can't be read") as e:
        TextTokenizer(folder, 16)
    assert str(folder) in str(e.value)
    assert "\n" not in str(e.value)
