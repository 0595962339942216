"""The cluster: connect to the named one or start a local one, and size the pools to fit it."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from stella_ray.errors import SettingsError

CPUS_PER_CPU_ENCODER = 4
"""Cores of one encoder where there is no GPU: beyond four, torch gains little from one more."""

MOST_BY_CORE = 8
"""Encoders of a node that has one a core."""

TASK_CPUS, TASKS_BESIDE = 0.25, 3
"""What reading and writing tasks ask for beside CPU encoders, and for how many there is room:
bookkeeping, so that two logical CPUs hold one encoder and both kinds of task (Ray Data waits
silently for what can't be had)."""

BYTES_PER_ROW = 2_048
"""A row of 300 tokens with its text: Ray's blocks are then about as large as our windows."""


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """How the cluster is used; 0 means: by what the cluster has."""

    encoders: int = 0
    """Encoder actors; 0: one a GPU, those of nodes that join late included, without GPUs one for
    every four CPUs (in evaluation one for every CPU, up to eight a node)."""
    gpus_per_encoder: float = 0.0
    """GPUs of an encoder; 0: one if the cluster has any. A fraction lets several share a GPU."""
    cpus_per_encoder: float = 0.0
    """CPUs of an encoder; 0: one beside a GPU, else an even share of what tasks leave over."""
    window_rows: int = 0
    """Rows of 2 kB that are ordered by length together, more where they are shorter; 0: 8,192 on
    GPUs, 512 on CPUs (a minute's work)."""
    rows_per_commit: int = 1_000_000
    """Rows between two commits: roughly what a dead driver costs."""
    seconds_per_commit: float = 60.0
    """Seconds after which written rows are committed even if they are fewer."""
    window_retries: int = 60
    """Times a window may be tried again when its encoder's process is gone, before the run gives
    up: a text that kills it must not become a loop. A lost node takes one a second until Ray has
    noticed, half a minute where it lost its power."""
    no_progress_seconds: int = 900
    """Seconds without a finished block after which the run gives up."""

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        for name in ("encoders", "gpus_per_encoder", "cpus_per_encoder", "window_rows"):
            if getattr(self, name) < 0:
                raise SettingsError(
                    f"pool.{name} {getattr(self, name)} is negative; expected 0 (auto) or more"
                )
        for name in ("rows_per_commit", "seconds_per_commit", "no_progress_seconds"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"pool.{name} {getattr(self, name)} must be above 0")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The pools as sized for this cluster."""

    encoders: int
    """Those that have room at the start."""
    most_encoders: int | None
    """How many they may become with nodes that join late; None: as many as find room."""
    gpus_per_encoder: float
    cpus_per_encoder: float
    task_cpus: float
    threads: int
    windows_at_once: int
    """Windows in an encoder's hands: on a GPU two, so that it computes one while the vectors of the
    one before are put together and shipped; a CPU has nothing to wait for."""
    window_rows: int
    block_bytes: int
    window_retries: int
    no_progress_seconds: int

    def __str__(self) -> str:
        """A line for people."""
        kind = (
            f"{self.gpus_per_encoder:g} GPU" if self.gpus_per_encoder else f"{self.threads} threads"
        )
        more = self.most_encoders is None or self.most_encoders > self.encoders
        later = (
            f" (to {self.most_encoders or 'all that find room'} with late nodes)" if more else ""
        )
        return f"{self.encoders} encoder{'s' * (self.encoders > 1)}{later} with {kind} each"


@contextmanager
def cluster() -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS (`ray job submit` sets it), else start a local one."""
    address = os.environ.get("RAY_ADDRESS", "local")
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray starts its processes by fork and exec, so Lance's threads don't come along.
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    local: dict[str, object] = {}
    if address == "local":
        # Unset, Ray 2.60 writes a token file, and later clusters of `ray start` refuse their users.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        # Ray Train asks the dashboard whether its controller lives, and without one waits for it at
        # each end, 17 s; where nobody listens it knows at once.
        os.environ.setdefault("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
        # Workers' lines are Ray's own chatter; what matters reaches the driver as an exception.
        local = {
            "num_cpus": max(2, os.cpu_count() or 2),
            "include_dashboard": False,
            "log_to_driver": False,
        }
    # The core worker calls every actor with restarts an error, and Ray Data's all have them; Ray
    # then says on stderr that it was told to keep quiet.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with _without_stderr():
            ray.init(address=address, logging_level=logging.WARNING, **local)
    except (ConnectionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SettingsError(
            f"the Ray cluster at {address} can't be reached ({reason}); check RAY_ADDRESS and,"
            " where the cluster uses tokens, RAY_AUTH_MODE=token"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Send what native code writes to file descriptor 2 nowhere; exceptions come through."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def size_pool(settings: PoolSettings) -> Pool:
    """Size the pools for the cluster we are connected to.

    Raises:
        SettingsError: the cluster lacks CPUs or GPUs for what is asked; a silent wait otherwise.
    """
    nodes = alive()
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    per_gpu = settings.gpus_per_encoder or (1.0 if gpus else 0.0)
    if per_gpu:
        encoders = settings.encoders or max(1, int(gpus / per_gpu))
        each, task_cpus = settings.cpus_per_encoder or 1.0, 1.0
    else:
        encoders = settings.encoders or max(1, int(cpus // CPUS_PER_CPU_ENCODER))
        task_cpus = TASK_CPUS
        largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
        # Beside an encoder its node has room for both kinds of task, so that one node is enough.
        beside = TASKS_BESIDE * task_cpus
        share = min(largest - beside, (cpus - beside) / encoders)
        each = settings.cpus_per_encoder or max(0.5, share)
    if per_gpu * encoders > gpus:
        raise SettingsError(
            f"{encoders} encoders with {per_gpu:g} GPU each need {per_gpu * encoders:g} GPUs, the"
            f" cluster has {gpus:g}; lower --encoders or --gpus_per_encoder"
        )
    needed = each * encoders + 2 * task_cpus
    if needed > cpus:
        raise SettingsError(
            f"{encoders} encoders with {each:g} CPUs each and the tasks beside them need {needed:g}"
            f" CPUs, the cluster has {cpus:g}; lower --encoders or --cpus_per_encoder, or"
            " add nodes"
        )
    if per_gpu == 0 and not any(node.get("CPU", 0.0) >= each for node in nodes):
        raise SettingsError(
            f"no node has the {each:g} CPUs of an encoder; lower --cpus_per_encoder"
        )
    share = os.cpu_count() or 2 if len(nodes) == 1 else max(node.get("CPU", 0.0) for node in nodes)
    window_rows = settings.window_rows or (8_192 if per_gpu else 512)
    return Pool(
        encoders=encoders,
        most_encoders=None if per_gpu and not settings.encoders else encoders,
        gpus_per_encoder=per_gpu,
        cpus_per_encoder=each,
        task_cpus=task_cpus,
        threads=max(1, round(share / max(1.0, encoders / len(nodes)))),
        windows_at_once=2 if per_gpu else 1,
        window_rows=window_rows,
        window_retries=settings.window_retries,
        no_progress_seconds=settings.no_progress_seconds,
        block_bytes=window_rows * BYTES_PER_ROW,
    )


def alive() -> list[dict[str, float]]:
    """The resources of each node that is there."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def an_encoder_a_core(settings: PoolSettings) -> PoolSettings:
    """The settings for a job whose encoders have the cluster to themselves.

    Where they run on CPUs and nothing is said of them: one a core, up to eight a node, with a
    thread each. Two of one thread embed 1.1 to 1.3 times as fast as one of two, which wait for each
    other at each operation (benchmarks/LOG.md); each takes memory of its own.
    """
    nodes = alive()
    told = settings.encoders or settings.gpus_per_encoder or settings.cpus_per_encoder
    if told or any(node.get("GPU") for node in nodes):
        return settings
    encoders = sum(min(MOST_BY_CORE, int(node.get("CPU", 0.0))) for node in nodes)
    return dataclasses.replace(settings, encoders=max(1, encoders))


def map_blocks(rows: ray.data.Dataset, stage: Any, **how: Any) -> ray.data.Dataset:
    """`map_batches` over whole blocks, on GPUs too.

    `map_batches` itself refuses GPUs without a batch size, and with one it merges blocks and cuts
    them anew; a block is a window, which the encoder cuts by tokens.
    """
    return rows.map_batches_internal(stage, batch_size=None, batch_format="pyarrow", **how)


def configure_data(pool: Pool, context: ray.data.DataContext) -> None:
    """Set a Ray Data context: bounded blocks, no bars, no endless wait."""
    context.target_max_block_size = pool.block_bytes
    context.execution_no_progress_timeout_s = pool.no_progress_seconds
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = 0
    keep_ray_data_quiet()


def keep_ray_data_quiet() -> None:
    """Keep Ray Data's own account of a failure, tracebacks included, in the session's log files.

    What fails reaches the driver as an exception, and a person as one line. Each stage calls this,
    since each worker process has loggers of its own.
    """
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.CRITICAL)
