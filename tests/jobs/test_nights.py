"""A few nights of benchmarks.chaos, and that it would see what it is there to see."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from benchmarks.nights import Corpus, Place, Reader, digest

ROOT = Path(__file__).parents[2]


def chaos(folder: Path, *words: str) -> tuple[int, str]:
    """Its exit code and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", "--folder", str(folder), *words],
        cwd=ROOT, text=True, timeout=540, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


chaos_is_asked_for = pytest.mark.skipif(
    "STELLA_RAY_TEST_CHAOS" not in os.environ,
    reason="takes minutes: set STELLA_RAY_TEST_CHAOS, or run python -m benchmarks.chaos",
)


@chaos_is_asked_for
@pytest.mark.ray
@pytest.mark.slow
def test_three_nights_with_a_killed_driver_encoder_and_node_end_whole(tmp_path: Path) -> None:
    code, said = chaos(
        tmp_path, "--local", "true", "--documents", "300", "--nights", "3", "--minutes", "6"
    )
    assert code == 0, said
    assert said.endswith("PASS\n")
    (attacks,) = re.findall(r"^attacks: (.*)$", said, re.M)
    assert all(f"'{kind}': " in attacks for kind in ("driver", "encoder", "node"))
    assert not list(tmp_path.iterdir())  # it takes everything away again


@chaos_is_asked_for
@pytest.mark.ray
@pytest.mark.slow
def test_a_job_that_fails_for_no_injected_reason_fails_the_run(tmp_path: Path) -> None:
    code, said = chaos(tmp_path, "--local", "true", "--documents", "100", "--job", "--corpus x")
    assert code == 1
    assert "exit code 3 after nothing" in said
    assert said.endswith("FAIL\n")


def a_table(place: Place, rows: dict[str, str]) -> None:
    """Publish exactly these rows."""
    numbers = np.eye(len(rows), 8, dtype=np.float32).ravel()
    table = pa.table({
        "doc_id": list(rows), "text": list(rows.values()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(numbers), 8),
    })  # fmt: skip
    data = lance.write_dataset(table, place.table, mode="overwrite")
    if "live" in data.tags.list():
        data.tags.update("live", data.version)
    else:
        data.tags.create("live", data.version)


def test_the_reader_tells_a_mixture_of_nights_and_a_step_back_from_a_whole_night(
    tmp_path: Path,
) -> None:
    place = Place(str(tmp_path))
    evening = {"a": "第0夜，一", "b": "第0夜，二"}
    morning = {"a": "第1夜，三", "b": "第0夜，二", "c": "第1夜，四"}
    states = {digest(evening.items()): 0, digest(morning.items()): 1}
    reader = Reader(place, states, random.Random(0))

    for night in (evening, evening, morning):
        a_table(place, night)
        reader.look()
    assert not reader.wrong
    assert reader.seen == {"reads": 3, "vector searches": 3}

    for wrong in (
        evening,
        {**morning, "a": evening["a"]},
        {**morning, "d": "第1夜，五"},
        {"a": ""},
    ):
        a_table(place, wrong)
        reader.look()
        assert reader.wrong.pop()
        assert not reader.wrong


def test_a_row_twice_is_another_state() -> None:
    assert digest([("a", "x"), ("a", "x")]) != digest([("a", "x")])


def test_a_night_changes_what_it_says_and_keeps_every_document_in_one_shard(
    tmp_path: Path,
) -> None:
    corpus, place = Corpus(500, random.Random(3)), Place(str(tmp_path))
    for night in range(1, 4):
        before = dict(corpus.texts)
        corpus.mutate()
        changed = [name for name, text in corpus.texts.items() if before.get(name) != text]
        assert len(changed) == corpus.changed == 20
        assert all(corpus.texts[name].startswith(f"第{night}夜，") for name in changed)
        assert len(set(before) - set(corpus.texts)) == 5
        assert sorted(corpus.texts) == sorted(n for names in corpus.shards.values() for n in names)
        corpus.write(place)
        files = {path.name for path in (tmp_path / "corpus").iterdir()}
        assert files == {f"{shard}.jsonl.gz" for shard in corpus.shards}
