"""Attacks for benchmarks.chaos, and the cluster that they hit: processes killed, S3 that fails."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.nights import Place

ROOT = Path(__file__).parents[1]
NODE = {"num_cpus": 2, "object_store_memory": 300 << 20}
Driver = subprocess.Popen[bytes]
S3_FAULTS = ("500", "503", "reset", "cut", "slow", "lose")


@contextlib.contextmanager
def made_cluster(nodes: int = 2, **node: Any) -> Iterator[Any]:
    """A Ray cluster of so many nodes, with a folder of its own; nothing of it is left after."""
    # Its workers and drivers import this checkout, also where another one is installed.
    os.environ |= {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    from ray.cluster_utils import Cluster

    # Ray puts sockets below this folder, and their paths may have 107 bytes at most.
    folder = tempfile.mkdtemp(prefix="chaos-", dir="/tmp")
    before = {process.pid for process in below()}  # another Ray of this process stays
    cluster = Cluster()
    try:
        cluster.add_node(**NODE | node, temp_dir=folder, include_dashboard=False)
        for _ in range(nodes - 1):
            cluster.add_node(**NODE | node)
        yield cluster
    finally:
        started = [process for process in below() if process.pid not in before]
        for node in [*cluster.worker_nodes, cluster.head_node]:
            cluster.remove_node(node, allow_graceful=False)
        for process in started:
            with contextlib.suppress(psutil.Error):
                if "ray" in title(process):
                    process.kill()
        shutil.rmtree(folder, ignore_errors=True)


class Attacks:
    """What is done to a night: each kind once in random order, then again."""

    def __init__(self, place: Place, cluster: Any, dice: random.Random) -> None:
        self.place, self.cluster, self.dice = place, cluster, dice
        self.kinds = ["driver", "encoder", "node", *(["s3", "s3"] if place.proxy else [])]
        self.bag: list[str] = []
        self.done = Counter[str]()

    def draw(self) -> str:
        """The next kind."""
        self.bag = self.bag or self.dice.sample(self.kinds, len(self.kinds))
        return self.bag.pop()

    def strike(self, kind: str, driver: Driver, seconds: float) -> str:
        """Wait up to `seconds`, strike, and say what was hit; nothing if the night was over."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(self.dice.uniform(0, seconds))
        while driver.poll() is None:
            if hit := getattr(self, f"_{kind}")(driver):
                self.done[kind] += 1
                return str(hit)
            time.sleep(0.02)
        self.bag.append(kind)
        return ""

    def _driver(self, driver: Driver) -> str:
        driver.kill()
        return "driver"

    def _encoder(self, _: Driver) -> str:
        found = [one for one in below() if "EncodeBlocks" in title(one)]
        if found:
            self.dice.choice(found).kill()
        return "encoder" if found else ""

    def _node(self, _: Driver) -> str:
        self.cluster.remove_node(next(iter(self.cluster.worker_nodes)), allow_graceful=False)
        time.sleep(self.dice.uniform(0, 3))
        self.cluster.add_node(**NODE)
        return "node"

    def _s3(self, _: Driver) -> str:
        kind, which = self.dice.choice(S3_FAULTS), self.dice.choice(["", "", "GET", "PUT"])
        # Up to twice as long as the job is told to try again.
        seconds = self.dice.choice([2, 5, 10, 40])
        self.place.proxy.inject(kind, for_seconds=seconds, match=which, seconds=0.5)
        return f"s3 {kind} {which or 'all'} {seconds} s"


def below() -> list[psutil.Process]:
    """Every process that this one started, and theirs."""
    return psutil.Process().children(recursive=True)


def title(process: psutil.Process) -> str:
    """A process's command line; empty when it is gone."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
