"""An encoder's account of its windows: for the receipts, and as metrics."""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from stella_ray.learn.folders import read_json
from stella_ray.pipeline.metrics import Metrics
from stella_ray.pipeline.rates import DENSE_FLOPS, flops_per_token, kind_of_gpu

log = logging.getLogger(__name__)


class WindowBook:
    """Notes what each window took; several threads may.

    Args:
        tags: the run and its table, for the metrics; None: none are told.
    """

    def __init__(self, tags: Mapping[str, str] | None) -> None:
        self.actor, self.node = actor_name(), platform.node()
        self._metrics = (
            None if tags is None else Metrics({**tags, "actor": self.actor, "node": self.node})
        )
        self._halvings = 0
        self._lock = threading.Lock()
        self._matrix: tuple[dict[str, Any], float] | None = None
        self._asked = False

    def note(self, encoder: Any, rows: pa.Table, found: Any, began: float) -> dict[str, Any]:
        """A window that has just been encoded, as `rows.WINDOW`.

        Args:
            encoder: what encoded it.
            rows: those that met it, of the schema `rows.prepared`.
            found: what it gave, `Embedded`.
            began: when it met the encoder, in seconds since 1970.
        """
        encoded = np.asarray(found.padded_tokens) > 0
        lengths = rows.column("n_tokens").to_numpy()[encoded].astype(np.int64)
        prepared_at = pc.max(rows.column("prepared_at")).as_py()
        told: dict[str, Any] = {
            "rows": len(rows) - len(found.faults),
            "tokens": int(lengths.sum()),
            "padded_tokens": int(np.sum(found.padded_tokens, dtype=np.int64)),
            "seconds": float(np.sum(found.seconds, dtype=np.float64)),
            "matrix_seconds": self._matrix_seconds(encoder, lengths),
            "halvings": self._new_halvings(encoder),
        }
        if self._metrics:
            self._tell(told)
        return {
            **told,
            "actor": self.actor,
            "node": self.node,
            "began": began,
            "ended": time.time(),
            # Two nodes' clocks may differ by more than a short wait.
            "queued": None if prepared_at is None else max(0.0, began - prepared_at),
        }

    def _tell(self, told: Mapping[str, Any]) -> None:
        assert self._metrics is not None
        self._metrics.tell("windows", 1)
        self._metrics.tell("encoded_rows", told["rows"])
        self._metrics.tell("device_seconds", told["seconds"])
        self._metrics.tell("oom_halvings", told["halvings"])
        for name in ("tokens", "padded_tokens", "matrix_seconds"):
            self._metrics.tell(name, told[name])

    def _new_halvings(self, encoder: Any) -> int:
        """Halvings of the token budget since the last window."""
        budget = getattr(encoder, "budget", None)
        with self._lock:
            new = (budget.splits if budget else 0) - self._halvings
            self._halvings += new
        return new

    def _matrix_seconds(self, encoder: Any, lengths: np.ndarray) -> float:
        if not self._asked:
            self._matrix, self._asked = matrix_rate(encoder), True
        return 0.0 if self._matrix is None else matrix_seconds(*self._matrix, lengths)


def matrix_seconds(config: dict[str, Any], rate: float, lengths: np.ndarray) -> float:
    """Seconds that rows of so many tokens take at `rate` FLOPs a second; `config` is the model's.

    A row's FLOPs are linear in its tokens and their square; a mean weighted by tokens does for all.
    """
    tokens = int(lengths.sum())
    weighted = float((lengths**2).sum() / max(1, tokens))
    return tokens * flops_per_token(config, weighted) / rate


def matrix_rate(encoder: Any) -> tuple[dict[str, Any], float] | None:
    """The model's config and its device's dense 16-bit FLOPs a second; None where not known."""
    device = getattr(encoder, "device", None)
    if getattr(device, "type", None) != "cuda":
        return None
    try:
        import torch

        kind = kind_of_gpu(torch.cuda.get_device_name(device))
        if kind is None or encoder.forward.dtype not in (torch.float16, torch.bfloat16):
            return None
        config = read_json(Path(encoder.spec.folder) / "config.json")
        flops_per_token(config, 1.0)  # another architecture than BERT's lacks what it needs
    except Exception as error:
        log.warning("the share of the matrix rate isn't known (%s)", " ".join(str(error).split()))
        return None
    return config, DENSE_FLOPS[kind]


def actor_name() -> str:
    """The beginning of this actor's id; of a process that is none, its own word."""
    if not ray.is_initialized():
        return "local"
    return str(ray.get_runtime_context().get_actor_id() or "driver")[:8]
