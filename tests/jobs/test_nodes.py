"""A node that is lost in the middle of a run costs time, nothing else; a late one is used."""

from __future__ import annotations

import multiprocessing
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from benchmarks.attacks import NODE, made_cluster
from tests.conftest import make_encoder
from tests.jobs.test_kill import Night, corpus

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_gpu_run_takes_a_late_node_s_gpu_and_goes_on_without_a_lost_one_s(
    tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    """GPUs are bookkeeping here; the encoders run on the CPU."""
    night = Night(tmp_path, make_encoder(tmp_path / "model", layers=6))
    rows = corpus(600, salt=4)
    for i in range(6):
        write_jsonl(night.corpus / f"{i}.jsonl", rows[i::6])
    # A cluster takes down every Ray below its process, so also the one that tests share.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        code, said = alone.submit(run_on_changing_nodes, night).result()
    assert code == 0, said
    assert "going on with 1 of 2 GPUs" in said
    assert "1 encoder (to all that find room with late nodes) with 1 GPU each" in said
    assert f"{len(rows):,} embedded" in said  # in this one run
    assert night.found() == night.expected(rows)


def run_on_changing_nodes(night: Night) -> tuple[int, str]:
    """Run a night on one node, let a second one join, then lose it: exit code and output."""
    node = {**NODE, "num_cpus": 4, "num_gpus": 1}
    with made_cluster(nodes=1, **node) as cluster:
        # Of two GPUs only one comes: the night begins with it.
        driver = night.start(
            before=tuple(shlex.split(
                "jobs/with_gpus.py --gpus 2 --least_gpus 1 --spot_minutes 0.02"
                f" --on_demand_minutes 0.02 -- {sys.executable}"
            )),
            RAY_ADDRESS=cluster.address, RAY_AUTH_MODE="disabled",
        )  # fmt: skip

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
    return driver.returncode, said
