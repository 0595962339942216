"""A run's course: what is kept of its receipts stays small and adds up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stella_ray import Encoder
from stella_ray.pipeline.history import POINTS, History, Timeline
from stella_ray.pipeline.rates import flops_per_token, kind_of_gpu
from stella_ray.pipeline.rejects import KINDS, RejectsFile, kind_of
from stella_ray.pipeline.windows import matrix_rate, matrix_seconds
from stella_ray.pipeline.write import length_counts
from stella_ray.receipts import LENGTHS, RECEIPT


def window(actor: str, began: float, ended: float, **more: Any) -> dict[str, Any]:
    told = {"actor": actor, "node": "n", "rows": 8, "tokens": 100, "padded_tokens": 110,
            "seconds": 0.5, "matrix_seconds": 0.1, "began": began, "ended": ended,
            "queued": 2.0, "halvings": 0}  # fmt: skip
    return {**told, **more}


def receipt(windows: list[dict[str, Any]], **more: Any) -> pa.Table:
    one = {"rows_read": 10, "windows": windows, "lengths": length_counts(np.full(8, 12)),
           "write_queued": 0.25, "written_at": 1_010.0}  # fmt: skip
    return pa.Table.from_pylist([{**one, **more}], RECEIPT)


@given(
    st.lists(
        st.tuples(st.floats(0, 1e6), st.floats(-5, 2e6), st.floats(0, 500)), max_size=40
    )
)  # fmt: skip
def test_a_timeline_of_any_run_is_bounded_and_loses_nothing(
    amounts: list[tuple[float, float, float]],
) -> None:
    timeline = Timeline("tokens", "documents")
    for amount, first, length in amounts:
        timeline.add("tokens", amount, first, first + length)
    found = timeline.to_json()
    assert len(found["tokens"]) == len(found["documents"]) <= POINTS
    assert sum(found["tokens"]) == pytest.approx(sum(a for a, *_ in amounts), abs=POINTS * 0.01)
    last = max((max(0.0, first + length) for _, first, length in amounts), default=0.0)
    assert found["span_seconds"] * POINTS > last


def test_an_amount_is_spread_over_the_time_it_took() -> None:
    timeline = Timeline("tokens")
    timeline.add("tokens", 100, 0.5, 3.0)
    assert timeline.to_json() == {"span_seconds": 1.0, "tokens": [20.0, 40.0, 40.0, 0.0]}


def test_windows_are_counted_for_their_encoders_and_waits_for_their_stages() -> None:
    history = History(1_000.0)
    first = [window("a", 1_001.0, 1_003.0), window("b", 1_001.0, 1_002.0, halvings=2)]
    waits = history.add(receipt(first), now=1_010.5)
    assert sorted(waits) == [("encode", 2.0), ("encode", 2.0), ("receive", 0.5), ("write", 0.25)]
    quiet = {"lengths": None, "write_queued": None}
    assert history.add(receipt([], **quiet), now=1_011.0) == [("receive", 1.0)]
    history.add(receipt([window("a", 1_003.0, 1_005.0, queued=None)]), now=1_012.0)
    found = history.to_json()
    assert found == json.loads(json.dumps(found))
    a, b = found["actors"]
    assert (a["windows"], a["rows"], a["tokens"], a["padded_tokens"], a["seconds"]) == (
        2, 16, 200, 220, 1.0
    )  # fmt: skip
    assert (b["windows"], b["halvings"], history.halvings) == (1, 2, 2)
    assert found["waits"]["encode"] == {"blocks": 2, "seconds": 4.0, "longest": 2.0}
    assert found["waits"]["receive"] == {"blocks": 3, "seconds": 3.5, "longest": 2.0}
    assert sum(found["lengths"]["rows"]) == 16
    assert sum(found["timeline"]["documents"]) == 30
    assert sum(found["timeline"]["tokens"]) == pytest.approx(300)
    assert history.matrix_share == 0.2


def test_without_a_known_gpu_no_share_of_its_rate_is_told() -> None:
    history = History(0.0)
    history.add(receipt([window("a", 1.0, 2.0, matrix_seconds=0.0)]), now=3.0)
    assert history.matrix_share is None
    assert History(0.0).matrix_share is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-40GB", "a100"), ("NVIDIA L4", "l4"),
     ("NVIDIA L40S", "l40s"), ("Tesla T4", "t4"), ("NVIDIA GeForce RTX 4090", None)],
)  # fmt: skip
def test_a_gpu_s_kind_is_a_word_of_its_name(name: str, kind: str | None) -> None:
    assert kind_of_gpu(name) == kind


def test_lengths_fall_in_the_bin_whose_limit_they_do_not_pass() -> None:
    counts = length_counts(np.array([1, 8, 9, 1024, 1025, 10_000]))
    limits = [*LENGTHS, "more"]
    found = {limits[i]: n for i, n in enumerate(counts) if n}
    assert found == {8: 2, 16: 1, 1024: 1, 1536: 1, "more": 1}
    assert sum(length_counts(np.array([], np.int32))) == 0


@pytest.mark.parametrize(
    ("row", "reason", "kind"),
    [
        (3, "the text is null", "the text is null"),
        (3, "not a line of JSON (unexpected end: line 1 column 7)", "not a line of JSON"),
        (3, "12 cells where the header has 3", "N cells where the header has N"),
        (3, "column year holds 'dreizehn (13)', expected int64", "column year of another type"),
        (3, "the encoder failed on this text (ValueError: token id 1 (x))",
         "the encoder failed on this text"),
        (3, "the id occurs again with a different text or kept column; kept: a.jsonl row 3",
         "the id occurs again with a different text or kept column"),
        (-1, "the shard is bad: s3://a/b.jsonl: no column ['id']", "the shard is bad"),
        (3, "(…)", "other reasons"),
    ],
)  # fmt: skip
def test_a_reason_s_kind_holds_nothing_of_its_row(row: int, reason: str, kind: str) -> None:
    assert kind_of(row, reason) == kind


def test_kinds_of_reasons_are_bounded_and_add_up(tmp_path: Any) -> None:
    letters = "abcdefghij"
    with RejectsFile(str(tmp_path / "rejects.jsonl")) as rejects:
        for i in range(100):
            rejects.add("a", i, None, f"odd {letters[i // 10]}{letters[i % 10]}")
    assert sum(rejects.kinds.values()) == rejects.count == 100
    assert len(rejects.kinds) <= KINDS + 1
    assert rejects.kinds["other reasons"] == 100 - KINDS


def test_matrix_seconds_are_the_rows_flops_at_the_data_sheet_s_rate(tiny_encoder: Path) -> None:
    config = json.loads((tiny_encoder / "config.json").read_text())
    lengths = np.array([10, 200, 1_024])
    flops = sum(int(n) * flops_per_token(config, int(n)) for n in lengths)
    assert matrix_seconds(config, 1e12, lengths) == pytest.approx(flops / 1e12)
    assert matrix_seconds(config, 1e12, lengths[:0]) == 0.0
    assert matrix_rate(Encoder(str(tiny_encoder))) is None  # on a CPU there is no data sheet
