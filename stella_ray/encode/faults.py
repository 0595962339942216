"""What may go wrong with a batch: the device is full, or a text makes the model raise."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

CALM_BATCHES = 64
"""Batches without running out of memory after which a halved budget grows by a tenth."""

NO_MEMORY = ("DefaultCPUAllocator: ", "CUBLAS_STATUS_ALLOC_FAILED")
"""In messages of plain RuntimeErrors that mean out of memory."""

REASON = 300
"""Characters of an error's message that a fault quotes."""


@dataclass
class Budget:
    """The token budget now: halved when the device runs out of memory, recovering slowly."""

    most: int
    least: int
    now: int = 0
    splits: int = 0
    calm: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        self.now = self.most

    def halve(self) -> bool:
        """Lower it after an out-of-memory; False when not even one row fits."""
        if self.now <= self.least:
            return False
        self.now, self.calm, self.splits = max(self.least, self.now // 2), 0, self.splits + 1
        return True

    def went_well(self) -> None:
        """Count a batch that fitted."""
        self.calm += 1
        if self.calm >= CALM_BATCHES and self.now < self.most:
            self.now, self.calm = min(self.most, self.now + max(1, self.now // 10)), 0


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device, or the machine, has too little memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(sign in str(error) for sign in NO_MEMORY)


def one_line(error: Exception) -> str:
    """An error's type and message, as the reason of a fault."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:REASON]}"


def check_ids(ids: np.ndarray, vocabulary: int) -> None:
    """Refuse token ids that the model has no embedding for.

    On CUDA they would be a failed assert on the device, which costs the process.

    Raises:
        ValueError: an id is outside.
    """
    outside = ids[(ids < 0) | (ids >= vocabulary)]
    if len(outside):
        raise ValueError(f"token id {outside[0]} is outside the model's vocabulary of {vocabulary}")
