"""What a training run says while it runs: lines on the driver's console, TensorBoard's curves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from stella_ray.learn.learner import StepReport


def line_of(report: StepReport, steps: int) -> str:
    """A step for a person to read."""
    long = f", {report.long_texts / report.texts:.0%} long" if report.long_texts else ""
    return (
        f"step {report.step + 1:,}/{steps:,} {report.source}: loss {report.loss:.4f}, gradient"
        f" {report.gradient_norm:.3g}, penalty {report.penalty_share:.1%}, rate {report.rate:.2g},"
        f" {report.rows:,} rows, {report.tokens:,} tokens{long}"
    )


class Board:
    """TensorBoard's files, by type: one curve a source."""

    def __init__(self, folder: str | None, done: int) -> None:
        self._writer: Any = None
        if folder:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(folder, purge_step=done)

    def write(self, report: StepReport) -> None:
        """Add a step's numbers."""
        if self._writer:
            numbers = {
                "loss": report.loss,
                "gradient_norm": report.gradient_norm,
                "penalty_share": report.penalty_share,
                "long_share": report.long_texts / max(1, report.texts),
            }
            for name, value in numbers.items():
                self._writer.add_scalar(f"{name}/{report.source}", value, report.step)
            self._writer.add_scalar("rate", report.rate, report.step)

    def close(self) -> None:
        """Write what is held back."""
        if self._writer:
            self._writer.close()


class _Speaker:
    """An actor that takes lines from a worker for the driver's console."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def take(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


@contextmanager
def spoken(say: Callable[[str], None]) -> Iterator[Any]:
    """An actor whose lines are said here, each second and at the end."""
    speaker = ray.remote(_Speaker).options(num_cpus=0).remote()
    done = threading.Event()

    def listen() -> None:
        over = False
        while not over:
            over = done.wait(1)
            try:
                lines = ray.get(speaker.take.remote(), timeout=30)
            except ray.exceptions.RayError:
                return
            for line in lines:
                say(line)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield speaker
    finally:
        done.set()
        thread.join()
        ray.kill(speaker)
