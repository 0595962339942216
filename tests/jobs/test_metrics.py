"""A run as it is watched: what Prometheus reads from Ray's agent, and the page that stays."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from stella_ray.pipeline.cluster import PoolSettings
from stella_ray.pipeline.estimate import EstimateSettings
from stella_ray.pipeline.metrics import METRICS
from tests.jobs.conftest import Desk, documents, text

pytestmark = pytest.mark.ray

EXPORTED_WITHIN = 40
"""Seconds; Ray's workers tell their node's agent every ten."""

Numbers = dict[tuple[str, str], float]


def scraped(run_id: str) -> Numbers:
    """Sums over the encoders of what the agent has of a run, by name and last tag."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found: Numbers = {}
    for line in lines:
        if line.startswith("ray_stella_ray_") and f'run="{run_id}"' in line:
            name = line.partition("{")[0].removeprefix("ray_stella_ray_")
            tag = re.search(r'(?:fate|reason|stage)="([^"]*)"', line)
            key = (name, tag[1] if tag else "")
            found[key] = found.get(key, 0.0) + float(line.rpartition(" ")[2])
    return found


def test_prometheus_reads_the_report_s_own_numbers_and_the_page_shows_them(
    published_desk: Desk, write_jsonl: Callable[..., Path]
) -> None:
    desk = published_desk
    bad = [{"id": "long", "text": text(5, 3_000)}, {"id": "<script>", "text": None}]
    write_jsonl(desk.corpus / "b.jsonl", [*documents(29, first=100), *bad, documents(1)[0]])
    price = EstimateSettings(price_per_hour=36.0, gpu="h100")
    copy = desk.corpus.parent / "out/copy.json"
    report = desk.embed(max_reject_fraction=0.5, estimate=price, report=str(copy),
                        pool=PoolSettings(window_rows=8))  # fmt: skip

    expected: Numbers = {
        ("read_documents_total", ""): report.rows_read,
        ("tokens_total", ""): report.tokens,
        ("padded_tokens_total", ""): report.padded_tokens,
        ("encoded_rows_total", ""): report.embedded,
        ("commits_total", ""): report.commits,
        ("committed_rows_total", ""): report.committed_rows,
        ("rejects_total", "the text is null"): 1,
        ("documents_total", "embedded"): 30,
        ("documents_total", "unchanged"): 12,
        ("documents_total", "rejected"): 1,
        ("documents_total", "repeated"): 1,
        ("windows_total", ""): sum(one["windows"] for one in report.history["actors"]),
        ("tokens_per_second", ""): report.tokens_per_second,
        ("device_busy", ""): report.device_busy,
        **{("queue_seconds_count", stage): wait["blocks"]
           for stage, wait in report.history["waits"].items()},
    }  # fmt: skip
    found: Numbers = {}
    end = time.monotonic() + EXPORTED_WITHIN
    while {key: found.get(key) for key in expected} != expected and time.monotonic() < end:
        time.sleep(0.5)
        found |= scraped(report.run_id)
    assert {key: found.get(key) for key in expected} == expected
    assert found["device_seconds_total", ""] == pytest.approx(report.seconds["encode"], abs=0.01)
    silent = {"matrix_seconds", "matrix_share", "oom_halvings"}  # of a GPU, and of a full one
    told = {re.sub("_(total|bucket|count|sum)$", "", name) for name, _ in found}
    assert told == set(METRICS) - silent

    saved: dict[str, Any] = json.loads(copy.read_text("utf-8"))
    history = saved["history"]
    assert sum(history["timeline"]["documents"]) == report.rows_read == 44
    assert sum(history["timeline"]["tokens"]) == pytest.approx(report.tokens, abs=1)
    assert sum(history["lengths"]["rows"]) == report.embedded == report.committed_rows == 30
    assert sum(one["tokens"] for one in history["actors"]) == report.tokens
    assert saved["reject_kinds"] == {"the text is null": 1}
    assert saved["costs"]["cost"] == pytest.approx(0.01 * report.seconds["total"], rel=0.1)
    page = copy.with_suffix(".html").read_text("utf-8")
    beside = desk.table.parent / "runs" / report.run_id / "report.html"
    assert page == beside.read_text("utf-8")
    assert "44 rows read = 30 embedded + 12 unchanged + 1 rejected + 1 repeated" in page
