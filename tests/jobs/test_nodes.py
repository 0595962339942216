"""A node that is lost in the middle of a run costs time, nothing else."""

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


def test_a_run_goes_on_when_one_of_two_nodes_is_killed(
    tmp_path: Path, write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    night = Night(tmp_path, make_encoder(tmp_path / "model", layers=6))
    rows = corpus(600, salt=4)
    for i in range(6):
        write_jsonl(night.corpus / f"{i}.jsonl", rows[i::6])
    for name in ("RAY_AUTH_MODE", "PYTHONPATH"):  # `made_cluster` sets them
        monkeypatch.setenv(name, os.environ.get(name, ""))
    with made_cluster() as cluster:
        flags = ["--pool.encoders", "2", "--pool.cpus_per_encoder", "1"]
        driver = night.start(*flags, RAY_ADDRESS=cluster.address, RAY_AUTH_MODE="disabled")
        end = time.monotonic() + 120
        while night.version() < 4 and driver.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert driver.poll() is None, driver.communicate()[0]
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        cluster.add_node(**NODE)
        try:
            said, _ = driver.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            driver.kill()
            raise
    assert driver.returncode == 0, said
    assert f"{len(rows):,} embedded" in said  # in this one run
    assert night.found() == night.expected(rows)
