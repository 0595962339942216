"""Nodes that the cluster starts when they are asked for, and how many encoders those here hold."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from stella_ray.errors import SettingsError

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5

ON_DEMAND = "on_demand"
"""The resource that nodes have which are no spot ones (cluster.yaml)."""


def alive() -> list[dict[str, float]]:
    """The resources of each node that is there."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def room(nodes: Sequence[dict[str, float]], gpus: float, cpus: float, beside: float) -> int:
    """How many encoders the nodes hold when the tasks beside them have their CPUs.

    Args:
        nodes: their resources.
        gpus: of an encoder; 0 where it has none.
        cpus: of an encoder.
        beside: CPUs of the tasks, anywhere in the cluster.
    """
    by_cpu = sum(int(node.get("CPU", 0.0) / cpus + 1e-9) for node in nodes)
    left = sum(node.get("CPU", 0.0) for node in nodes) - beside
    fit = min(by_cpu, max(0, int(left / cpus + 1e-9)))
    if gpus:
        each = (
            min(node.get("GPU", 0.0) / gpus, node.get("CPU", 0.0) / cpus)
            for node in nodes
            if node.get("GPU", 0.0) >= gpus
        )
        fit = min(fit, sum(int(one + 1e-9) for one in each))
    return fit


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Encoders that nodes are asked for.

    Attributes:
        encoders: how many.
        gpus: of an encoder; 0 where it has none.
        cpus: of an encoder.
        beside: CPUs of the tasks beside them, anywhere in the cluster.
    """

    encoders: int
    gpus: float
    cpus: float
    beside: float

    def have_room(self) -> int:
        """How many of them have room by now."""
        return min(self.encoders, room(alive(), self.gpus, self.cpus, self.beside))

    def bundles(self, on_demand: bool) -> list[dict[str, float]]:
        """What an autoscaler is to find nodes for."""
        one = {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}
        if on_demand:  # as small a share as a bundle may have: all encoders of a node fit on it
            one[ON_DEMAND] = 0.001
        # A node that holds an encoder and no CPU more would leave the tasks without one.
        return [*(one for _ in range(self.encoders)), {"CPU": self.beside}]


def wait_for_room(wanted: Wanted, seconds: float, spot_seconds: float) -> int:
    """Ask for the nodes of all encoders, and wait until the first has room.

    The demand is placement groups that nothing runs in. They are this job's: should it die, the
    demand goes with it, where `ray.autoscaler.sdk.request_resources` would keep nodes for ever.
    Ray's autoscaler asks for the node type of the highest priority without end, also where a cloud
    has no spot capacity for it; so after `spot_seconds` it is asked for nodes with the resource
    `on_demand`.

    Returns:
        How many encoders have room.

    Raises:
        SettingsError: none has after all that time.
    """
    found = wanted.have_room()
    if found == wanted.encoders:
        return found
    log.info("asking for the nodes of %s encoders, %s have room", wanted.encoders, found)
    began = time.monotonic()
    turns = [(False, min(seconds, spot_seconds)), (True, seconds)] if spot_seconds else []
    for on_demand, until in turns or [(False, seconds)]:
        asked: list[Any] = [placement_group([bundle]) for bundle in wanted.bundles(on_demand)]
        try:
            while not found and time.monotonic() - began < until:
                time.sleep(POLL_SECONDS)
                found = wanted.have_room()
        finally:
            for one in asked:
                remove_placement_group(one)
        if found:
            took = time.monotonic() - began
            log.info("%s of %s encoders have room after %.0f s", found, wanted.encoders, took)
            return found
        log.info("no %s within %.0f s", "node on demand" if on_demand else "node", until)
    there = {name: sum(n.get(name, 0.0) for n in alive()) for name in ("CPU", "GPU")}
    raise SettingsError(
        f"after {seconds:g} s the cluster has {there['CPU']:g} CPUs and {there['GPU']:g} GPUs, no"
        f" room for one encoder ({wanted.cpus:g} CPUs, {wanted.gpus:g} GPUs, and"
        f" {wanted.beside:g} CPUs for tasks); `ray status` says why no node started"
    )
