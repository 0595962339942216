"""Stages of the pipeline as plain functions."""

from __future__ import annotations

import pyarrow as pa

from stella_ray.pipeline.judge import Preparation, judge
from stella_ray.pipeline.prepare import tokenised
from stella_ray.table.keys import KnownKeys


def prepare(block: pa.Table, how: Preparation, known: KnownKeys) -> pa.Table:
    """Every row with its fate, those too that would stay in the first task."""
    return tokenised(block, judge(block, how, known), how)
