"""Long texts as overlapping windows of tokens, cut where a sentence ends if one ends near."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stella_ray.encode.tokens import Ragged, TextTokenizer, TokenPlaces
from stella_ray.errors import SettingsError

LOOK_BACK = 5
"""A cut is looked for in the last fifth of what fits: far enough for a sentence of 100 tokens."""

BYTES_PER_TOKEN = 4.5
"""Of UTF-8, Chinese or English: a first guess of how far a window reaches."""

MOST_CHARACTERS_PER_TOKEN = 8.0
"""For the guesses after it: behind a run of blanks, of which BERT makes no token, what the last
chunk had would take in megabytes."""

_CLOSING = "”’』」）】》〉)\\]"
_SENTENCE_END = re.compile(
    rf"((?<=[。！？｡])(?![。！？｡!?])[{_CLOSING}]*"
    rf"|(?<=[.!?])[{_CLOSING}\"']*(?=\s)"  # without a blank behind: 3.14, example.org
    r"|(?<=\n))\s*"
)
_CLAUSE_END = re.compile(rf"((?<=[，；：、…])(?!…)[{_CLOSING}]*|(?<=[,;:])(?=\s))\s*")
_BEHIND = frozenset("，。！？；：、…”’』」）】》〉,.!?;:)]")
"""No chunk begins with one of these if it can be helped."""

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
    cutter = _Cutter(tokenizer, prefix, overlap)
    pieces = {
        i: list(cutter.cut(texts[i]))
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


@dataclass(frozen=True)
class _Cutter:
    tokenizer: TextTokenizer
    prefix: str
    overlap: int

    def cut(self, text: str) -> Iterator[_Piece]:
        """The chunks of one text, in order."""
        ink_end = len(text.rstrip())
        start = done = 0
        # Of this text alone: how far is read can move a cut, which must not hang on other texts.
        head = text[:1_000]
        per_token = BYTES_PER_TOKEN * len(head) / len(head.encode())
        while done < ink_end:  # blanks at the end make no chunk: they stay with the last one
            window = self._read(text, start, per_token)
            size, tokens = self._first_chunk(window, ink_end - start)
            per_token = min(size / len(tokens.values), MOST_CHARACTERS_PER_TOKEN)
            end = start + size
            if end <= done:  # begun inside a word, a chunk can cost more tokens than it gains
                start = done
            elif window.text[:size].isspace():
                ink = _INK.search(text, end)
                assert ink  # there is some before ink_end
                start = done = ink.start()
            else:
                yield _Piece(start, end, tokens)
                start, done = start + window.next_start(size, self.overlap), end

    def _read(self, text: str, start: int, per_token: float) -> _Window:
        most = self.tokenizer.max_tokens
        reach = int(most * per_token * 1.15) + 16
        while True:
            part = text[start : start + reach]
            places = self.tokenizer.places(part, self.prefix)
            fit = max(most - places.others, 1)
            if len(places) > fit:
                return _Window(part, places, fit)
            if start + reach >= len(text):
                return _Window(part, places, len(places))
            reach = int(reach * min(max(1.15 * most / (len(places) + 1), 1.25), 2)) + 1

    def _first_chunk(self, window: _Window, ink_end: int) -> tuple[int, Ragged]:
        """How many characters of the window its chunk takes, and the chunk's tokens."""
        size = len(window.text) if window.is_rest() else window.cut_place(window.fit, ink_end)
        step = 1
        while True:
            ids = self.tokenizer.ids(self.prefix + window.text[:size])
            over = len(ids) - self.tokenizer.max_tokens
            if over <= 0:
                row = np.array(ids, self.tokenizer.id_type)
                return size, Ragged(row, np.array([0, len(row)]), np.array([False]))
            if size == window.least():
                return size, self.tokenizer([window.text[:size]], self.prefix)
            held = bisect_left(window.places, size)
            size = window.cut_place(held - max(over, step), ink_end)
            step *= 2


@dataclass(frozen=True)
class _Window:
    """What a chunk may be cut from; positions are characters from the chunk's start.

    Attributes:
        text: a little more than fits, unless the document ends.
        places: where its tokens begin.
        fit: how many of its tokens fit; all of them only where the document ends with them.
    """

    text: str
    places: TokenPlaces
    fit: int

    def is_rest(self) -> bool:
        """Whether the whole rest of the document fits."""
        return self.fit == len(self.places)

    def least(self) -> int:
        """The smallest chunk: its first token's first character, and the blanks before it."""
        return self.places[0] + 1

    def cut_place(self, fit: int, ink_end: int) -> int:
        """The best place to cut so that `fit` tokens lie before it, or up to a fifth fewer."""
        least = self.least()
        low, high = (max(self.places[max(at, 0)], least) for at in (fit - fit // LOOK_BACK, fit))
        if low < ink_end <= high:  # only blanks are left, and don't fit: keep ink to go with them
            high = ink_end - 1
        return max(self._boundaries(low, high), default=high)

    def next_start(self, size: int, overlap: int) -> int:
        """Where the chunk behind the first `size` characters begins."""
        if not overlap:
            return size
        back = bisect_left(self.places, size) - overlap
        low = min(max(self.places[max(back, 0)], 1), size)
        last_ink = len(self.text[:size].rstrip()) - 1
        return min(self._boundaries(low, last_ink), default=low)

    def _boundaries(self, low: int, high: int) -> list[int]:
        """The places from `low` to `high` that part sentences; if none clauses; if none words."""
        for kind in (_SENTENCE_END, _CLAUSE_END):
            # From before `low`, for the end that begins there with a bracket or a blank.
            found = [
                min(end.end(), high)
                for end in kind.finditer(self.text, max(low - 8, 0))
                if end.end(1) <= high and end.end() >= low
            ]
            if found:
                return found
        inside = range(max(bisect_left(self.places, low), 1), bisect_right(self.places, high))
        return [
            self.places[token]
            for token in inside
            if self.places.begins_word(token) and self.text[self.places[token]] not in _BEHIND
        ]
