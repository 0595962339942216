"""What an encoder gives; apart from it, so that a stand-in needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Embedded:
    """What a window of rows gave.

    Attributes:
        vectors: unit vectors in the order of the rows, float32 [rows, dim].
        padded_tokens: tokens the device worked on for each row, padding included; 0 for a row whose
            text stood in the window before and for one at fault, int32 [rows].
        seconds: the device's time for each row's share of its batch, float32 [rows].
        faults: rows that the encoder raises on and why, in one line; their vectors are zeros.
    """

    vectors: np.ndarray
    padded_tokens: np.ndarray
    seconds: np.ndarray
    faults: dict[int, str]
