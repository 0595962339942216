"""Text to token ids: prefix, special tokens and the cut at max_tokens, ragged and without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from stella_ray.errors import ModelError

CHARACTERS_PER_TOKEN = 4
"""A text is first cut to this many characters a token: Chinese needs 1 to 1.4, English 4.5."""

SETTLED = 128
"""Tokens behind max_tokens that must exist for a cut text to count: what the cut did to the last
word (BERT's are at most 100 characters) stays behind them."""


SIGNS = "!\"#%&'()*,-./:;?@_{}，。！？；：、（）《》〈〉【】「」『』“”‘’…—·"
"""Punctuation of Chinese texts; what isn't here costs only time."""

RUNS_KEPT, LONGEST_RUN_KEPT = 1 << 16, 32
"""Runs between Chinese characters whose ids are remembered, and their characters at most."""


@dataclass(frozen=True)
class Ragged:
    """Token ids of many rows, back to back.

    Attributes:
        values: the ids of all rows, uint16 or int32 [tokens].
        offsets: where each row starts, int64 [rows + 1].
        truncated: whether a row was cut at max_tokens, bool [rows].
    """

    values: np.ndarray
    offsets: np.ndarray
    truncated: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, special ones included, int64 [rows]."""
        return np.diff(self.offsets)


class TokenPlaces:
    """Where each of a text's own tokens begins, in characters of the text as it is.

    Looked up when asked for: a cut asks for a few of them, and a list of all costs as much as half
    of the tokenising.

    Attributes:
        others: how many tokens there are besides: the prefix's and the special ones.
    """

    def __init__(self, encoding: Any, before: int, special_behind: int) -> None:
        self._encoding, self._before = encoding, before
        last = len(encoding) - special_behind
        # One token may hold the prefix's last space and the text's first word.
        self._first = next((i for i in range(last) if self._span(i)[1] > before), last)
        self._count = last - self._first
        self.others = len(encoding) - self._count

    def _span(self, token: int) -> tuple[int, int]:
        # A special token put before the text has no place.
        span: tuple[int, int] | None = self._encoding.token_to_chars(token)
        return span or (0, 0)

    def __len__(self) -> int:
        """How many tokens."""
        return self._count

    def __getitem__(self, token: int) -> int:
        """Where a token begins; only the text's first one may begin in the prefix, hence the 0."""
        if not 0 <= token < self._count:
            raise IndexError(token)
        return max(self._span(self._first + token)[0] - self._before, 0)

    def begins_word(self, token: int) -> bool:
        """Whether a token but the first doesn't go on with the word of the one before."""
        word = self._encoding.token_to_word
        return bool(word(self._first + token) != word(self._first + token - 1))


class TextTokenizer:
    """A model folder's fast tokenizer, cutting at `max_tokens` and putting a prefix first.

    Raises:
        ModelError: the folder has no tokenizer that can be read.
    """

    def __init__(self, folder: str | Path, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._tokenizer = _load(Path(folder))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        mask = self._tokenizer.encode("a").special_tokens_mask
        ids = self._tokenizer.encode("a").ids
        behind = mask[::-1].index(0) if 0 in mask else 0
        self._suffix = ids[len(ids) - behind :]
        self._front = ids[: mask.index(0) if 0 in mask else 0]
        self._lone = _lone_characters(self._tokenizer)
        self._runs: dict[str, list[int]] = {}
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.id_type: type[np.generic] = np.uint16 if size <= 1 << 16 else np.int32

    def __call__(self, texts: Sequence[str], prefix: str = "") -> Ragged:
        """Tokenise `prefix + text` for each text; equals the library's own truncation.

        A long text is not tokenised whole in order to keep its first max_tokens tokens: it is cut
        by characters first, and tokenised again, twice as far, where that left too few tokens.
        """
        rows = [np.empty(0, np.int32)] * len(texts)
        todo = list(range(len(texts)))
        reach = self.max_tokens * CHARACTERS_PER_TOKEN
        while todo:
            encoded = self._encode([prefix + texts[i][:reach] for i in todo])
            again = []
            for i, ids in zip(todo, encoded, strict=True):
                if len(texts[i]) > reach and len(ids) < self.max_tokens + SETTLED:
                    again.append(i)
                else:
                    rows[i] = ids
            todo, reach = again, reach * 2
        lengths = np.fromiter((len(ids) for ids in rows), np.int64, len(rows))
        truncated = lengths > self.max_tokens
        for i in np.flatnonzero(truncated).tolist():
            rows[i] = np.append(rows[i][: self.max_tokens - len(self._suffix)], self._suffix)
        lengths = np.minimum(lengths, self.max_tokens)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        values = np.concatenate([np.empty(0, np.int32), *rows]).astype(self.id_type)
        return Ragged(values, offsets, truncated)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        """Each text's ids, special ones included: where most of it is Chinese by table."""
        if self._lone is None:
            return [np.array(e.ids, np.int32) for e in self._tokenizer.encode_batch_fast(texts)]
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        starts = np.concatenate([[0], ends[:-1]])
        codes = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
        ids = self._lone[np.minimum(codes, len(self._lone) - 1)]
        count = np.concatenate([[0], np.cumsum(ids >= 0)])
        chinese = 2 * (count[ends] - count[starts]) > ends - starts
        whole = [text for text, table in zip(texts, chinese.tolist(), strict=True) if not table]
        encoded = iter(self._tokenizer.encode_batch_fast(whole) if whole else [])
        return [
            self._by_table(text, ids[a:b]) if table else np.array(next(encoded).ids, np.int32)
            for text, a, b, table in zip(
                texts, starts.tolist(), ends.tolist(), chinese.tolist(), strict=True
            )
        ]

    def _by_table(self, text: str, ids: np.ndarray) -> np.ndarray:
        """The ids of a text from those of its lone characters; the library does what is between.

        Args:
            text: of which each lone character is a word.
            ids: the id of each character, -1 for those that aren't lone, int32 [characters].
        """
        other = np.flatnonzero(np.diff(ids < 0, prepend=False, append=False))
        if not len(other):
            return np.concatenate([self._front, ids, self._suffix]).astype(np.int32)
        parts, done = [np.asarray(self._front, np.int32)], 0
        for start, end in other.reshape(-1, 2).tolist():
            parts += [ids[done:start], np.asarray(self._run(text[start:end]), np.int32)]
            done = end
        return np.concatenate([*parts, ids[done:], np.asarray(self._suffix, np.int32)])

    def _run(self, text: str) -> list[int]:
        """The ids of what stands between lone characters: numbers, names, often the same."""
        found = self._runs.get(text)
        if found is None:
            ids = self.ids(text)
            found = ids[len(self._front) : len(ids) - len(self._suffix)]
            if len(text) <= LONGEST_RUN_KEPT:
                if len(self._runs) >= RUNS_KEPT:
                    self._runs.clear()
                self._runs[text] = found
        return found

    def ids(self, text: str) -> list[int]:
        """All token ids of a text, special ones included, uncut."""
        ids: list[int] = self._tokenizer.encode_batch_fast([text])[0].ids
        return ids

    def places(self, text: str, prefix: str = "") -> TokenPlaces:
        """Tokenise `prefix + text`, uncut, for where the text could be cut."""
        encoding = self._tokenizer.encode(prefix + text)
        return TokenPlaces(encoding, len(prefix), len(self._suffix))


def _lone_characters(tokenizer: Any) -> np.ndarray | None:
    """The ids of characters that BERT takes for words of their own, whatever stands beside them.

    BertNormalizer puts blanks around Chinese characters, and BertPreTokenizer cuts around signs, so
    a text is the tokens of what is between them and theirs. A character of an added token ("[SEP]")
    is left out: such tokens are found first.

    Returns:
        By code point, -1 for others, int32 [65536]; None if the tokenizer isn't made so.
    """
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.model)
    if [type(part).__name__ for part in parts] != [
        "BertNormalizer",
        "BertPreTokenizer",
        "WordPiece",
    ]:
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    unknown = vocabulary.get(tokenizer.model.unk_token)
    if unknown is None or not tokenizer.normalizer.handle_chinese_chars:
        return None
    added = set("".join(t.content for t in tokenizer.get_added_tokens_decoder().values()))
    out = np.full(1 << 16, -1, np.int32)
    for letter in (*map(chr, range(0x3400, 0x4DC0)), *map(chr, range(0x4E00, 0xA000)), *SIGNS):
        if letter not in added:
            out[ord(letter)] = vocabulary.get(letter, unknown)
    return out


def _load(folder: Path) -> Any:
    # Rust threads of their own in each of many worker processes would fight over the same cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    whole = folder / "tokenizer.json"
    try:
        if whole.exists() and _speaks_for_itself(folder):
            return Tokenizer.from_file(str(whole))
        from transformers import AutoTokenizer  # pays for torch, so only where it must

        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False).backend_tokenizer
    except Exception as error:  # the tokenizers library raises bare Exception
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}: the tokenizer can't be read ({reason})") from None


def _speaks_for_itself(folder: Path) -> bool:
    """Whether tokenizer.json needs no correction from tokenizer_config.json.

    transformers lets the config's BERT flags, and its defaults for absent ones, override the file's
    flags; where they differ it must do the loading.
    """
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text("utf-8")) if config_file.exists() else {}
    own = json.loads((folder / "tokenizer.json").read_text("utf-8")).get("normalizer") or {}
    if own.get("type") != "BertNormalizer":
        return "do_lower_case" not in config
    flags = {  # in the file: (in the config, where the config doesn't say)
        "lowercase": ("do_lower_case", True),
        "strip_accents": ("strip_accents", None),
        "handle_chinese_chars": ("tokenize_chinese_chars", True),
    }
    same = all(own.get(flag) == config.get(*theirs) for flag, theirs in flags.items())
    return same and own.get("clean_text") is True
