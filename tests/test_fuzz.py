"""A small night of benchmarks.fuzz, and that it would tell if a reader failed."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from benchmarks import fuzz, fuzz_shards
from benchmarks.fuzz_shards import Tally, watched
from stella_ray.errors import CorpusError


@pytest.mark.parametrize("name", fuzz.READERS)
def test_whatever_a_file_holds_its_rows_add_up_or_it_is_refused_in_one_line(
    tmp_path: Path, name: str
) -> None:
    feed, file, _ = fuzz.READERS[name]
    tally = feed(random.Random(7), tmp_path / file, 300)
    assert tally.faults == []
    assert tally.inputs == 300
    assert tally.rows
    assert tally.refused or tally.rejects


def test_the_same_chunk_has_the_same_inputs(tmp_path: Path) -> None:
    first, second = (fuzz.chunk(12, 40, 3, str(tmp_path))[0] for _ in range(2))
    assert first == second != fuzz.chunk(12, 40, 4, str(tmp_path))[0]


def test_every_hundred_chunks_have_every_format() -> None:
    assert len(fuzz.formats()) == 100
    assert set(fuzz.formats()) == set(fuzz.READERS)


def test_other_exceptions_lost_rows_and_hangs_are_faults_and_their_files_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz_shards, "SECONDS", 0.1)
    path, tally = tmp_path / "a.jsonl", Tally()
    path.write_bytes(b"bad")
    with watched(tally, path, 1):
        raise CorpusError("a: one line")
    assert (tally.refused, tally.faults) == (1, [])
    with watched(tally, path, 1):
        raise KeyError("id")
    with watched(tally, path, 1):
        assert [1] == [1, 2], "a row is gone"
    with watched(tally, path, 1):
        time.sleep(5)
    assert (tally.inputs, tally.refused) == (4, 1)
    told = ["KeyError", "AssertionError", "Hang"]
    assert [word in fault for word, fault in zip(told, tally.faults, strict=True)] == [True] * 3
    assert len(list(tmp_path.glob("fault-*"))) == 3
