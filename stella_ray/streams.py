"""Lines of a file that may hold anything: unpacked as a stream, none longer than is bearable."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from typing import IO, TextIO

import pyarrow as pa

from stella_ray.errors import CorpusError

BOM = b"\xef\xbb\xbf"

LONGEST_LINE = 32 << 20
"""Bytes of a line, characters of a row of csv: eleven million Chinese characters. A megabyte of
gzip can hold a gigabyte without a line end."""


def unpacked(file: IO[bytes], compression: str | None) -> IO[bytes]:
    """The file's bytes, decompressed as a stream; of several members or frames, all are read.

    Args:
        file: a buffered one.
        compression: gzip or zstd; None leaves it as it is.
    """
    if compression == "gzip":
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if compression == "zstd":
        return io.BufferedReader(pa.input_stream(file, compression="zstd"))
    return file


def lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines, which end at a line feed alone; see `too_long` for those that are cut."""
    while line := file.readline(LONGEST_LINE + 1):
        yield line
        while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE + 1)


def too_long(line: bytes) -> str | None:
    """What to say of a line of which `lines` yields no more than its beginning."""
    if len(line) <= LONGEST_LINE:
        return None
    return f"the line is longer than {LONGEST_LINE:,} bytes"


def whole_lines(path: str, file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file of which each is needed, without its byte order mark.

    Raises:
        CorpusError: one is too long.
    """
    for number, line in enumerate(lines(file), 1):
        if fault := too_long(line):
            raise CorpusError(f"{path}: line {number}: {fault}; expected one text or row on each")
        yield line.removeprefix(BOM) if number == 1 else line


class CsvText:
    """The text that csv parses; one row can't fill the memory.

    Attributes:
        row_characters: since the caller last set it to 0, which it does behind each row.
    """

    def __init__(self, text: TextIO) -> None:
        self.text = text
        self.row_characters = 0

    def __iter__(self) -> Iterator[str]:
        """Yield the lines; a generator, because csv would call a `__next__` of ours for each.

        Raises:
            csv.Error: the row is longer than `LONGEST_LINE`.
        """
        readline = self.text.readline
        while line := readline(LONGEST_LINE + 1):
            self.row_characters += len(line)
            if self.row_characters > LONGEST_LINE:
                raise csv.Error(
                    f"a row is longer than {LONGEST_LINE:,} characters; a quote may be left open"
                )
            yield line
