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
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.id_type: type[np.generic] = np.uint16 if size <= 1 << 16 else np.int32

    def __call__(self, texts: Sequence[str], prefix: str = "") -> Ragged:
        """Tokenise `prefix + text` for each text; equals the library's own truncation.

        A long text is not tokenised whole in order to keep its first max_tokens tokens: it is cut
        by characters first, and tokenised again, twice as far, where that left too few tokens.
        """
        rows: list[list[int]] = [[]] * len(texts)
        todo = list(range(len(texts)))
        reach = self.max_tokens * CHARACTERS_PER_TOKEN
        while todo:
            encoded = self._tokenizer.encode_batch_fast([prefix + texts[i][:reach] for i in todo])
            again = []
            for i, encoding in zip(todo, encoded, strict=True):
                ids = encoding.ids
                if len(texts[i]) > reach and len(ids) < self.max_tokens + SETTLED:
                    again.append(i)
                else:
                    rows[i] = ids
            todo, reach = again, reach * 2
        lengths = np.fromiter((len(ids) for ids in rows), np.int64, len(rows))
        truncated = lengths > self.max_tokens
        for i in np.flatnonzero(truncated).tolist():
            rows[i] = rows[i][: self.max_tokens - len(self._suffix)] + self._suffix
        lengths = np.minimum(lengths, self.max_tokens)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        values = np.empty(int(offsets[-1]), self.id_type)
        for start, ids in zip(offsets[:-1], rows, strict=True):
            values[start : start + len(ids)] = ids
        return Ragged(values, offsets, truncated)

    def ids(self, text: str) -> list[int]:
        """All token ids of a text, special ones included, uncut."""
        ids: list[int] = self._tokenizer.encode_batch_fast([text])[0].ids
        return ids

    def places(self, text: str, prefix: str = "") -> TokenPlaces:
        """Tokenise `prefix + text`, uncut, for where the text could be cut."""
        encoding = self._tokenizer.encode(prefix + text)
        return TokenPlaces(encoding, len(prefix), len(self._suffix))


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
