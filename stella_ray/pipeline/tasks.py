"""Ray tasks whose results are merged or taken in order, so many under way at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import ray

TASKS_PER_CPU = 2
"""That wait or run: enough to keep every CPU busy, few enough for their results to fit."""


def reduced(
    tasks: Iterator[Any], merge: Callable[[Any, Any], Any], at_once: int, cpus: float
) -> Any:
    """All tasks' results merged by twos, in tasks too; so many are under way at a time.

    Args:
        tasks: submits a task each time it is asked for one.
        merge: makes one result of two.
        at_once: tasks.
        cpus: of a merge.
    """
    join = ray.remote(merge).options(num_cpus=cpus)
    flying: list[Any] = []
    for task in itertools.chain(tasks, [None]):
        if task is not None:
            flying.append(task)
        while len(flying) > (1 if task is None else at_once):
            # Merged where they lie, not on the driver's node.
            two, flying = ray.wait(flying, num_returns=2, fetch_local=False)
            flying.append(join.remote(*two))
    return ray.get(flying[0])


def in_order(tasks: Iterator[Any], at_once: int) -> Iterator[Any]:
    """All tasks' results in their order; so many are under way at a time."""
    flying: list[Any] = []
    for task in tasks:
        flying.append(task)
        if len(flying) >= at_once:
            yield ray.get(flying.pop(0))
    yield from map(ray.get, flying)


def tasks_at_once(cpus: float) -> int:
    """How many tasks of so many CPUs each may be under way."""
    have = ray.cluster_resources().get("CPU", 1.0)
    return max(3, int(TASKS_PER_CPU * have / max(cpus, 1.0)))
