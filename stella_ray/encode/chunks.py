"""Long texts as overlapping windows of tokens, cut where a sentence ends if one ends near."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stella_ray.encode.tokens import Ragged, TextTokenizer, TokenPlaces
from stella_ray.errors import SettingsError

LOOK_BACK = 5
"""A cut is looked for in the last fifth of what fits: far enough for a sentence of 100 tokens."""

CHARACTERS_PER_TOKEN = 1.5, 8.0
"""The first guess of how far a window reaches (Chinese), and the most that is guessed for the next
one: after a run of blanks, of which BERT makes no token, the guess would take in megabytes."""

_CLOSING = "”’』」）】》〉)\\]"
_SENTENCE_END = re.compile(
    rf"((?<=[。！？｡])(?![。！？｡!?])[{_CLOSING}]*"
    rf"|(?<=[.!?])[{_CLOSING}\"']*(?=\s)"  # without a blank behind: 3.14, example.org
    r"|(?<=\n))\s*"
)
_CLAUSE_END = re.compile(rf"((?<=[，；：、…])(?!…)[{_CLOSING}]*|(?<=[,;:])(?=\s))\s*")
_INK = re.compile(r"\S")


@dataclass(frozen=True)
class Chunks:
    """Token ids of chunks, and which part of which text each is.

    Attributes:
        tokens: of every chunk, prefix and special tokens included. `truncated` is True only for a
            single character of more tokens than fit and for a text of nothing but blanks.
        document: which of the texts, ascending, int64 [chunks].
        number: from 0 in each text, int32 [chunks].
        start: where the chunk begins in its text, in characters, int32 [chunks].
        end: where it ends, int32 [chunks]: the vector is that of `text[start:end]`.
    """

    tokens: Ragged
    document: np.ndarray
    number: np.ndarray
    start: np.ndarray
    end: np.ndarray


def chunk_texts(
    tokenizer: TextTokenizer, texts: Sequence[str], prefix: str, overlap: int
) -> Chunks:
    """Tokenise each text as one chunk if it fits in max_tokens, else as several.

    1. Tokenise from the chunk's start, a little further than fits.
    2. Cut behind the last sentence end in the last fifth of what fits; else behind a clause; else
       between words; else between tokens.
    3. Tokenise the slice alone, as a search for it would: where the cut made more tokens of it than
       fit, cut further ahead.
    4. Begin the next chunk `overlap` tokens back, or at the first sentence start behind that.

    The chunks of a text together hold all of it, but for blanks that the tokenizer makes so many
    tokens of that they would be a chunk of their own.

    Args:
        tokenizer: says what fits.
        texts: documents.
        prefix: put before every chunk.
        overlap: tokens that a chunk has in common with the one before, at most.

    Raises:
        SettingsError: the overlap isn't less than half of what a chunk holds.
    """
    room = tokenizer.max_tokens - len(tokenizer.ids(prefix))
    if not 0 <= 2 * overlap < room:
        raise SettingsError(
            f"an overlap of {overlap} tokens, where max_tokens {tokenizer.max_tokens} leaves"
            f" {max(room, 0)} beside the prefix and the special tokens; expected 0 to less than"
            " half of them: lower the overlap or raise max_tokens"
        )
    whole = tokenizer(texts, prefix)
    pieces = {
        i: list(_cut(tokenizer, texts[i], prefix, overlap))
        for i in np.flatnonzero(whole.truncated).tolist()
        if not texts[i].isspace()
    }
    counts = np.array([len(pieces.get(i, "1")) for i in range(len(texts))], np.int64)
    first = np.cumsum(counts) - counts
    document = np.repeat(np.arange(len(texts)), counts)
    start = np.zeros(len(document), np.int32)
    end = np.repeat(np.array([len(text) for text in texts], np.int32), counts)
    for i, parts in pieces.items():
        rows = slice(first[i], first[i] + counts[i])
        start[rows], end[rows] = [part.start for part in parts], [part.end for part in parts]
    number = (np.arange(len(document)) - np.repeat(first, counts)).astype(np.int32)
    return Chunks(_with_pieces(whole, pieces), document, number, start, end)


@dataclass(frozen=True)
class _Piece:
    start: int
    end: int
    tokens: Ragged


def _with_pieces(whole: Ragged, pieces: dict[int, list[_Piece]]) -> Ragged:
    """The rows of `whole`, each row that was cut replaced by its pieces."""
    parts, done = [], 0
    for i, cut in pieces.items():
        parts += [_rows(whole, done, i), *(piece.tokens for piece in cut)]
        done = i + 1
    if not parts:
        return whole
    parts.append(_rows(whole, done, len(whole.truncated)))
    lengths = np.concatenate([part.lengths for part in parts])
    return Ragged(
        np.concatenate([part.values for part in parts]),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([part.truncated for part in parts]),
    )


def _rows(tokens: Ragged, start: int, end: int) -> Ragged:
    offsets = tokens.offsets[start : end + 1]
    values = tokens.values[offsets[0] : offsets[-1]]
    return Ragged(values, offsets - offsets[0], tokens.truncated[start:end])


def _cut(tokenizer: TextTokenizer, text: str, prefix: str, overlap: int) -> Iterator[_Piece]:
    """The chunks of one text, in order."""
    ink_end = len(text.rstrip())
    start = done = 0
    per_token = CHARACTERS_PER_TOKEN[0]
    while done < ink_end:  # blanks at the end make no chunk: they stay with the last one
        window = _read(tokenizer, text, start, prefix, per_token)
        size, tokens = _first_chunk(tokenizer, window, prefix, ink_end - start)
        per_token = min(size / len(tokens.values), CHARACTERS_PER_TOKEN[1])
        end = start + size
        if end <= done:  # begun inside a word, a chunk can cost more tokens than it gains
            start = done
        elif window.text[:size].isspace():
            ink = _INK.search(text, end)
            assert ink  # there is some before ink_end
            start = done = ink.start()
        else:
            yield _Piece(start, end, tokens)
            start, done = start + _next_start(window, size, overlap), end


@dataclass(frozen=True)
class _Window:
    """What a chunk may be cut from; positions are characters from the chunk's start.

    Attributes:
        text: a little more than fits, unless the document ends.
        places: where its tokens are.
        fit: how many of its tokens fit; all of them only where the document ends with them.
    """

    text: str
    places: TokenPlaces
    fit: int

    def least(self) -> int:
        """The smallest chunk: its first token's first character, and the blanks before it."""
        return int(self.places.starts[0]) + 1

    def is_rest(self) -> bool:
        """Whether the whole rest of the document fits."""
        return self.fit == len(self.places.starts)


def _read(
    tokenizer: TextTokenizer, text: str, start: int, prefix: str, per_token: float
) -> _Window:
    reach = int(tokenizer.max_tokens * per_token * 1.2) + 16
    while True:
        part = text[start : start + reach]
        places = tokenizer.places(part, prefix)
        fit = max(tokenizer.max_tokens - places.others, 1)
        if len(places.starts) > fit:
            return _Window(part, places, fit)
        if start + reach >= len(text):
            return _Window(part, places, len(places.starts))
        reach *= 2


def _first_chunk(
    tokenizer: TextTokenizer, window: _Window, prefix: str, ink_end: int
) -> tuple[int, Ragged]:
    """How many characters of the window its chunk takes, and the chunk's tokens."""
    size = len(window.text) if window.is_rest() else _cut_place(window, window.fit, ink_end)
    step = 1
    while True:
        ids = tokenizer.ids(prefix + window.text[:size])
        over = len(ids) - tokenizer.max_tokens
        if over <= 0:
            row = np.array(ids, tokenizer.id_type)
            return size, Ragged(row, np.array([0, len(row)]), np.array([False]))
        if size == window.least():
            return size, tokenizer([window.text[:size]], prefix)
        held = int(np.searchsorted(window.places.starts, size))
        size = _cut_place(window, held - max(over, step), ink_end)
        step *= 2


def _cut_place(window: _Window, fit: int, ink_end: int) -> int:
    """The best place to cut so that `fit` tokens lie before it, or somewhat fewer."""
    least, starts = window.least(), window.places.starts
    low, high = (max(int(starts[max(at, 0)]), least) for at in (fit - fit // LOOK_BACK, fit))
    if low < ink_end <= high:  # only blanks are left, and don't fit: they need ink to lie behind
        high = ink_end - 1
    return max(_boundaries(window, low, high), default=high)


def _next_start(window: _Window, size: int, overlap: int) -> int:
    """Where the chunk after the window's first `size` characters begins."""
    if not overlap:
        return size
    starts = window.places.starts
    back = int(np.searchsorted(starts, size)) - overlap
    low = min(max(int(starts[max(back, 0)]), 1), size)
    last_ink = len(window.text[:size].rstrip()) - 1
    return min(_boundaries(window, low, last_ink), default=low)


def _boundaries(window: _Window, low: int, high: int) -> list[int]:
    """The places from `low` to `high` that part sentences; if none clauses; if none words."""
    for kind in (_SENTENCE_END, _CLAUSE_END):
        # From before `low`, for the end that begins there with a bracket or a blank.
        found = [
            min(end.end(), high)
            for end in kind.finditer(window.text, max(low - 8, 0))
            if end.end(1) <= high and end.end() >= low
        ]
        if found:
            return found
    words = window.places.words
    return [int(word) for word in words[(words >= low) & (words <= high)]]
