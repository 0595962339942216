"""Long documents as chunks: nothing lost, nothing over max_tokens, cut where a reader would."""

from __future__ import annotations

import csv
import functools
import gzip
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from stella_ray.encode.chunks import Chunks, chunk_texts
from stella_ray.encode.tokens import Ragged, TextTokenizer
from stella_ray.errors import SettingsError
from tests.conftest import HAN

EXAMPLES = Path(__file__).parents[2] / "examples/corpus"
PREFIXES = ["", "世: ", "丁 "]
ENGLISH = "the old man went to the sea; he had no boat, only 3.14 oars. who knows why? nobody did! "
BLANKS = " \t\r\n\u3000"
ODD = [
    "👩\u200d👩\u200d👧",
    "🀄",
    "e\u0301",
    "ＡＢ",
    "ﬁ",
    "ﷺ",
    "\u200b",
    "\x00",
    "\r\n",
    "[SEP]",
    "𠀀",
]
TEXTS = st.lists(
    st.one_of(
        st.text(HAN[:50], max_size=40),
        st.text([*HAN[:9], *"。！？\n；，”』」…"], max_size=40),
        st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=130),
        st.sampled_from([ENGLISH, ENGLISH.upper(), "他说：“走吧。”我们就走了。\n"]),
        st.sampled_from(ODD),
        st.text(BLANKS, max_size=20),
        st.text(max_size=10),
    ),
    max_size=30,
).map("".join)
PATHOLOGICAL = {
    "one_word": "ab" * 30_000,
    "one_letter": "中" * 30_000,
    "one_letter_in_words": "a " * 15_000,
    "blanks_then_words": " " * 30_000 + "三 abc" * 100,
    "words_then_blanks": "三 abc" * 100 + "\r\n" * 15_000,
    "blanks_between": ("三" * 40 + "\n" * 5_000) * 6,
    "words_of_the_longest_length": ("x" * 100 + " ") * 100,
    "accents_on_one_letter": "e" + "\u0301" * 3_000 + "三" * 300,
    "one_character_for_eighteen": "ﷺ" * 2_000,
    "what_is_not_a_character": "三" * 100 + "\x00\ufeff" * 4_000 + "三" * 100,
    "families": ODD[0] * 1_000,
    "beyond_the_basic_plane": "𠀀😀" * 3_000,
    "special_tokens": "[SEP]" * 1_000,
    "sentence_ends": "。" * 3_000 + "." * 3_000 + "”" * 3_000 + ". " * 3_000,
    "open_ends": ".'" * 5_000 + "。）" * 5_000,
}


@functools.cache
def tokenizer(folder: Path, max_tokens: int) -> TextTokenizer:
    return TextTokenizer(folder, max_tokens)


def rows(tokens: Ragged) -> list[list[int]]:
    return [row.tolist() for row in np.split(tokens.values, tokens.offsets[1:-1])]


def spans(chunks: Chunks) -> list[tuple[int, int]]:
    return list(zip(chunks.start.tolist(), chunks.end.tolist(), strict=True))


def checked(own: TextTokenizer, texts: Sequence[str], prefix: str, overlap: int) -> Chunks:
    """The chunks of texts, once all that must hold of any chunks is seen to hold."""
    chunks = chunk_texts(own, texts, prefix, overlap)
    whole = own(texts, prefix)
    slices = [texts[d][a:b] for d, (a, b) in zip(chunks.document, spans(chunks), strict=True)]
    again = own(slices, prefix)
    assert rows(chunks.tokens) == rows(again)
    assert chunks.tokens.offsets.tolist() == again.offsets.tolist()
    assert chunks.tokens.values.dtype == again.values.dtype
    assert not chunks.tokens.truncated.any()
    assert not again.truncated.any()
    assert [chunks.number.dtype, chunks.start.dtype, chunks.end.dtype] == [np.int32] * 3
    assert chunks.document.dtype == np.int64
    for i, text in enumerate(texts):
        mine = np.flatnonzero(chunks.document == i)
        assert (np.diff(mine) == 1).all()
        assert chunks.number[mine].tolist() == list(range(len(mine)))
        start, end = chunks.start[mine], chunks.end[mine]
        assert start[0] == 0
        assert end[-1] == len(text)
        assert (np.diff(start) > 0).all()
        assert (np.diff(end) > 0).all()
        assert (start[1:] <= end[:-1]).all()
        assert overlap or (start[1:] == end[:-1]).all()
        assert (len(mine) > 1) == whole.truncated[i]
        assert len(mine) == 1 or not any(slices[row].isspace() for row in mine)
    return chunks


@pytest.mark.parametrize(("max_tokens", "overlap"), [(16, 0), (16, 5), (64, 0), (64, 20)])
@given(texts=st.lists(TEXTS.filter(str.strip), max_size=4), prefix=st.sampled_from(PREFIXES))
@settings(max_examples=60, deadline=None)
def test_chunks_hold_all_of_a_text_and_are_what_their_slices_tokenise_to(
    tiny_encoder: Path, max_tokens: int, overlap: int, texts: list[str], prefix: str
) -> None:
    checked(tokenizer(tiny_encoder, max_tokens), texts, prefix, overlap)


@pytest.mark.parametrize(("max_tokens", "overlap"), [(40, 0), (64, 20)])
@given(texts=st.lists(TEXTS.filter(str.strip), max_size=4), prefix=st.sampled_from(PREFIXES))
@settings(max_examples=60, deadline=None)
def test_a_unigram_tokenizer_cuts_as_exactly(
    xlmr_encoder: Path, max_tokens: int, overlap: int, texts: list[str], prefix: str
) -> None:
    checked(tokenizer(xlmr_encoder, max_tokens), texts, prefix, overlap)


@pytest.mark.parametrize("overlap", [0, 12])
@pytest.mark.parametrize("name", PATHOLOGICAL)
@pytest.mark.parametrize("encoder", ["tiny_encoder", "xlmr_encoder"])
def test_no_text_is_too_strange_to_be_cut(
    request: pytest.FixtureRequest, encoder: str, name: str, overlap: int
) -> None:
    own = tokenizer(request.getfixturevalue(encoder), 64)
    checked(own, ["三", PATHOLOGICAL[name], "三 abc"], "世: ", overlap)


def byte_tokenizer(folder: Path, max_tokens: int) -> TextTokenizer:
    """One whose every byte is a token, blanks too: what no BERT does."""
    alphabet = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    made = Tokenizer(BPE(alphabet, []))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    made.save(str(folder / "tokenizer.json"))
    return TextTokenizer(folder, max_tokens)


@pytest.mark.parametrize("overlap", [0, 3])
def test_blanks_of_more_tokens_than_fit_are_left_out_and_make_no_chunk(
    tmp_path: Path, overlap: int
) -> None:
    own = byte_tokenizer(tmp_path, 10)
    for text in ("ab" + " " * 25 + "cd" + " " * 25, " " * 35 + "ab c", "ab\n" * 9 + " " * 9):
        chunks = chunk_texts(own, [text], "", overlap)
        assert not chunks.tokens.truncated.any()
        held = {at for start, end in spans(chunks) for at in range(start, end)}
        assert all(at in held for at, letter in enumerate(text) if letter != " ")
        assert not any(text[start:end].isspace() for start, end in spans(chunks))


def test_a_character_of_more_tokens_than_fit_is_cut_off_and_marked(tmp_path: Path) -> None:
    own = byte_tokenizer(tmp_path, 3)
    chunks = chunk_texts(own, ["😀😀", "ab", "三😀"], "", 1)
    assert chunks.document.tolist() == [0, 0, 1, 2, 2]
    assert spans(chunks) == [(0, 1), (1, 2), (0, 2), (0, 1), (1, 2)]
    assert chunks.tokens.truncated.tolist() == [True, True, False, False, True]
    assert chunks.tokens.lengths.tolist() == [3, 3, 2, 3, 3]


def test_a_text_of_nothing_but_blanks_stays_one_row(tmp_path: Path) -> None:
    chunks = chunk_texts(byte_tokenizer(tmp_path, 4), [" " * 20, "ab"], "", 0)
    assert spans(chunks) == [(0, 20), (0, 2)]
    assert chunks.tokens.truncated.tolist() == [True, False]


def test_texts_that_fit_are_what_the_tokenizer_says(tiny_encoder: Path) -> None:
    own = tokenizer(tiny_encoder, 16)
    texts = ["三", "", "丁" * 12, " "]
    chunks = checked(own, texts, "世: ", 3)
    assert rows(chunks.tokens) == rows(own(texts, "世: "))
    assert spans(chunks) == [(0, len(text)) for text in texts]
    assert len(checked(own, ["丁" * 13], "世: ", 3).start) == 2
    assert len(chunk_texts(own, [], "世: ", 3).start) == 0


def test_chinese_prose_is_cut_where_sentences_end(tiny_encoder: Path) -> None:
    own = tokenizer(tiny_encoder, 256)
    texts = [text for text in examples() if len(text) > 300]
    assert len(texts) > 50
    chunks = checked(own, texts, "世: ", 40)
    followed = np.diff(chunks.document, append=-1) == 0
    places = list(zip(chunks.document, chunks.end, strict=True))
    ends = [texts[d][:e].rstrip()[-1] for d, e in np.array(places)[followed]]
    assert np.mean([end in "。！？”’」』）" for end in ends]) > 0.9
    assert all(end in "。！？”’」』）；，：、" for end in ends)
    places = list(zip(chunks.document, chunks.start, strict=True))
    begins = [texts[d][:s].rstrip()[-1] for d, s in np.array(places)[chunks.number > 0]]
    assert np.mean([end in "。！？”’」』）" for end in begins]) > 0.5
    assert all(end in "。！？”’」』）；，：、" for end in begins)


def test_how_a_text_is_cut_does_not_hang_on_the_texts_beside_it(tiny_encoder: Path) -> None:
    own = tokenizer(tiny_encoder, 64)
    # Words of more than 100 letters are one token, parts of them many: where reading ends shows.
    long_words = ["".join("x" * (101 + i) + " " for i in range(n, 90)) for n in range(3)]
    texts = [text for words in long_words for text in ("三" * 99, words, ENGLISH * 5, words)]
    beside = chunk_texts(own, texts, "世: ", 9)
    alone = [spans(chunk_texts(own, [text], "世: ", 9)) for text in texts]
    assert spans(beside) == [span for one in alone for span in one]


@pytest.mark.parametrize(
    ("text", "ends"),  # 30 tokens fit; from the 24th on a cut is looked for
    [
        ("丁" * 22 + "。", "丁丁"),
        ("丁" * 23 + "。", "丁。"),
        ("丁" * 29 + "。", "丁。"),
        ("丁" * 24 + "。世。", "世。"),
        ("丁" * 24 + "？！", "？！"),
        ("丁" * 24 + "。”", "。”"),
        ("丁" * 24 + "！」）", "」）"),
        ("丁" * 29 + "。”", "丁丁"),  # the quote doesn't fit, and stays with its sentence
        ("丁" * 28 + "\r\n", "\r\n"),
        ("丁" * 28 + "！ \n ", "\n "),
        ("丁" * 24 + ". ", ". "),
        ("丁" * 24 + "3.1", "丁丁"),
        ("丁" * 24 + "，", "丁，"),
        ("丁" * 24 + "。丁，", "丁。"),
        ("丁" * 24 + "abc abcdefg", "c "),
        ("丁" * 28 + "abcdefg", "丁丁"),
        ("abcdefghijklm" * 3, "cd"),
    ],
)
def test_a_cut_is_behind_a_sentence_else_a_clause_else_a_word(
    tiny_encoder: Path, text: str, ends: str
) -> None:
    text += "丁" * 20
    first = checked(tokenizer(tiny_encoder, 32), [text], "", 0).end[0]
    assert text[:first][-2:] == ends


def test_chunks_overlap_by_as_many_tokens_as_asked_or_from_a_sentence_start(
    tiny_encoder: Path,
) -> None:
    own = tokenizer(tiny_encoder, 32)
    chunks = checked(own, ["丁" * 100], "", 7)
    assert (chunks.end[:-1] - chunks.start[1:]).tolist() == [7] * (len(chunks.start) - 1)
    text = "丁" * 24 + "。" + "世" * 4 + "。" + "丁" * 50
    assert spans(checked(own, [text], "", 7))[:2] == [(0, 30), (25, 55)]
    # no further back than the overlap
    assert spans(checked(own, [text], "", 4))[:2] == [(0, 30), (26, 56)]


@pytest.mark.parametrize("overlap", [-1, 6, 7, 16, 1_000])
def test_an_overlap_of_half_of_what_fits_is_refused_with_both_numbers(
    tiny_encoder: Path, overlap: int
) -> None:
    own = tokenizer(tiny_encoder, 16)
    chunk_texts(own, ["三"], "世: ", 5)
    with pytest.raises(SettingsError, match=f"overlap of {overlap} tokens.* 16 leaves 12") as e:
        chunk_texts(own, [], "世: ", overlap)
    assert "\n" not in str(e.value)


def test_a_prefix_that_leaves_no_room_is_refused(tiny_encoder: Path) -> None:
    with pytest.raises(SettingsError, match="leaves 0 beside the prefix"):
        chunk_texts(tokenizer(tiny_encoder, 8), [], "世" * 9, 0)


def test_the_time_for_a_text_grows_with_its_length_and_not_with_the_square(
    tiny_encoder: Path,
) -> None:
    own = tokenizer(tiny_encoder, 64)
    text = "".join(examples())

    def seconds(size: int) -> float:
        begun = time.process_time()
        chunk_texts(own, [text[:size]], "", 8)
        return time.process_time() - begun

    assert len(text) > 30_000
    assert seconds(30_000) < 30 * min(seconds(3_000) for _ in range(5))


@functools.cache
def examples() -> list[str]:
    """The texts of examples/corpus."""
    texts = pq.read_table(EXAMPLES / "part-0.parquet").column("text").to_pylist()
    with gzip.open(EXAMPLES / "part-1.jsonl.gz", "rt", encoding="utf-8") as file:
        texts += [json.loads(line)["text"] for line in file]
    with (EXAMPLES / "part-2.csv").open(encoding="utf-8", newline="") as file:
        texts += [row["text"] for row in csv.DictReader(file)]
    return texts
