"""The errors a person can mend, as a tree; each ends a job with one line and its own exit code.

    StellaError                 1
    ├── SettingsError           2   a flag, preset or environment variable; the cluster is too small
    ├── CorpusError             3   a shard that can't be read, or isn't what the settings say
    │   └── BadShard            3   damaged, empty or gone; `--on_bad_shard reject` goes on without
    ├── ModelError              4   an encoder that can't be found, loaded or used
    │   └── ModelMismatch       4   the table was made by another encoder
    ├── TableError              5   the table can't be opened, written or searched
    └── IncompleteRun           6   the run ended without everything in place; nothing was published

A message holds what was found, what was expected and what to do. Anything that is not a
`StellaError` is a bug and shows its traceback.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

MOST_CHARACTERS = 2_000
"""Of a message: a shard can have a column name of megabytes."""


class StellaError(Exception):
    """What a person can mend; the message is one line, whatever the names in it hold."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    """The text with what isn't printable written as its escape, and its middle left out if long.

    A column's name may hold line ends, a terminal's commands or half a character, which can't be
    printed at all.
    """
    if not text.isprintable():
        # U+3000 is the space of Chinese texts, which Python doesn't count as printable.
        text = "".join(c if c.isprintable() or c == "\u3000" else ascii(c)[1:-1] for c in text)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:1_500]} … {text[-400:]}"


def brief(value: Any, most: int = 60) -> str:
    """A value of a file as messages show it."""
    try:
        return "null" if value is None else repr(value)[:most]
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"


class SettingsError(StellaError):
    """A setting that can't hold, found before Ray or a device is touched."""

    exit_code = 2


class CorpusError(StellaError):
    """A shard that can't be read or isn't what the settings say."""

    exit_code = 3


class BadShard(CorpusError):
    """A shard whose bytes are there and aren't a whole file of its format, or that is gone."""


class ModelError(StellaError):
    """An encoder that can't be found, loaded or used."""

    exit_code = 4


class ModelMismatch(ModelError):
    """The table was made by another encoder."""


class TableError(StellaError):
    """A table that can't be opened, written or searched."""

    exit_code = 5


class IncompleteRun(StellaError):
    """A run that ended without everything in place; the published version is as it was."""

    exit_code = 6


def stella_error_in(error: BaseException | None) -> StellaError | None:
    """Find the `StellaError` that a chain of wrappers (Ray's, mostly) ends in, if there is one.

    Ray Data hands a worker's exception on as the text of its traceback alone; there the last line
    that names one of ours is read, which holds the whole message since messages are one line.
    """
    text = str(error)
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        # Ray keeps the worker's exception in `.cause`, and may derive its wrapper from both.
        below = getattr(error, "cause", None)
        if isinstance(error, StellaError) and below is None:
            return error
        seen.add(id(error))
        error = below or error.__cause__ or error.__context__
    kinds: dict[str, type[StellaError]] = {kind.__name__: kind for kind in _below(StellaError)}
    told = re.findall(rf"^\s*{re.escape(__name__)}\.(\w+): (.+)$", text, re.MULTILINE)
    return next((kinds[name](line.strip()) for name, line in told[::-1] if name in kinds), None)


def _below(kind: type[StellaError]) -> list[type[StellaError]]:
    return [below for child in kind.__subclasses__() for below in (child, *_below(child))]
