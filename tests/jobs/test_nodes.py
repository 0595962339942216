"""A node that is lost in the middle of a run costs time, nothing else; a late one is used."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.attacks import NODE, made_cluster
from tests.conftest import make_encoder
from tests.jobs.test_kill import Night, corpus

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_gpu_run_takes_a_late_node_s_gpu_and_goes_on_without_a_lost_one_s(
    tmp_path: Path, write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPUs are bookkeeping here; the encoders run on the CPU."""
    night = Night(tmp_path, make_encoder(tmp_path / "model", layers=6))
    rows = corpus(600, salt=4)
    for i in range(6):
        write_jsonl(night.corpus / f"{i}.jsonl", rows[i::6])
    for name in ("RAY_AUTH_MODE", "PYTHONPATH"):  # `made_cluster` sets them
        monkeypatch.setenv(name, os.environ.get(name, ""))
    node = {**NODE, "num_cpus": 4, "num_gpus": 1}
    with made_cluster(nodes=1, **node) as cluster:
        driver = night.start(RAY_ADDRESS=cluster.address, RAY_AUTH_MODE="disabled")

        def reached(version: int) -> None:
            end = time.monotonic() + 120
            while night.version() < version and driver.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            assert driver.poll() is None, driver.communicate()[0]

        reached(3)
        late = cluster.add_node(**node)
        reached(8)
        cluster.remove_node(late, allow_graceful=False)
        try:
            said, _ = driver.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            driver.kill()
            raise
    assert driver.returncode == 0, said
    assert "1 encoder (to all that find room with late nodes) with 1 GPU each" in said
    assert f"{len(rows):,} embedded" in said  # in this one run
    assert night.found() == night.expected(rows)
