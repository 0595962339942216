"""The token budget of a GPU: a stand-in for the device, since none is needed to choose."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from stella_ray import Encoder
from stella_ray.encode import encoder as encoders
from stella_ray.encode.models import EncoderSettings
from stella_ray.encode.probe import find_budget
from stella_ray.errors import ModelError
from tests.encode.test_encoder import SmallDevice


class Device:
    """A batch costs a start and its tokens; above `room` there is no memory."""

    def __init__(self, start: float, rate: float, room: int = 1 << 40) -> None:
        self.start, self.rate, self.room = start, rate, room
        self.tried: list[int] = []

    def __call__(self, tokens: int) -> float | None:
        self.tried.append(tokens)
        return None if tokens > self.room else self.start + tokens / self.rate


@pytest.mark.parametrize(
    ("device", "found"),
    [
        (Device(0, 1e5), 8_192),  # small batches serve as well: leave memory to others
        (Device(1e-3, 2e6), 131_072),  # the first of which the start is no more than 2% of it
        (Device(1e-2, 2e6, room=100_000), 65_536),  # what fits
        (Device(1, 1e9), 524_288),  # never near the best: the last
        (Device(0, 1e6, room=1_000), 512),  # nothing fits: the least, and batches are halved
    ],
)
def test_the_smallest_batch_near_the_best_rate_is_taken(device: Device, found: int) -> None:
    assert find_budget(device, least=512) == found
    assert device.tried == sorted(device.tried)


def test_two_doublings_without_a_gain_end_it_and_the_longest_row_always_fits() -> None:
    device = Device(0, 1e6)
    assert find_budget(device, least=10_000) == 10_000
    assert device.tried == [10_000, 20_000, 40_000]


def test_a_slow_device_is_tried_for_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def slow(tokens: int) -> float:
        now[0] += 3
        return 3 - tokens * 1e-6

    assert find_budget(slow, least=512) == 16_384


def test_an_encoder_tries_full_batches_and_keeps_what_fits(loud_encoder: Path) -> None:
    """As on CUDA, on a CPU that runs out of memory above 1,000 tokens."""
    how: dict[str, Any] = {"path": str(loud_encoder), "device": "cpu", "max_tokens": 64}
    encoder = Encoder(EncoderSettings(**how))
    encoder.forward.model = SmallDevice(encoder.forward.model, 1_000)
    assert encoder._seconds_of(1_024) is None
    assert (encoder._seconds_of(900) or 0) > 0
    found = find_budget(encoder._seconds_of, 64, first=256, last=4_096)
    assert found in (256, 512)
    rows = encoders.full_rows(900, 64, encoder.forward)
    assert (rows.lengths == 64).all()
    assert len(rows.lengths) == 14


def test_an_encoder_that_raises_on_full_rows_says_so(loud_encoder: Path) -> None:
    encoder = Encoder(EncoderSettings(path=str(loud_encoder), device="cpu", max_tokens=64))

    def broken(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] > 60:
            raise RuntimeError("positions end at 60")

    encoder.forward.model.register_forward_pre_hook(broken, with_kwargs=True)
    with pytest.raises(ModelError, match=r"rows of 64 tokens \(RuntimeError: positions end at 60"):
        encoder._seconds_of(256)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_budget_is_found_at_the_start(loud_encoder: Path) -> None:
    found = Encoder(EncoderSettings(path=str(loud_encoder), device="cuda")).budget
    assert 8_192 <= found.most <= 524_288
    assert found.splits == 0
    asked = Encoder(EncoderSettings(path=str(loud_encoder), device="cuda", token_budget=4_096))
    assert asked.budget.most == 4_096
