"""Published figures to stand beside ours: the model cards' C-MTEB tables."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

from stella_ray.errors import SettingsError


@functools.cache
def published() -> dict[str, Any]:
    """The card's comparison table of seven encoders, and each one's main metric by task.

    `source` says where from; `table` has sizes and means, `tasks` figures in percent.
    """
    return _read("cmteb")


@functools.cache
def stella_base_card() -> dict[str, Any]:
    """Every figure of stella-base-zh's card: by task split, subset and metrics, in percent."""
    return _read("stella-base-zh")


def _read(name: str) -> dict[str, Any]:
    file = resources.files(__package__) / "reference" / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def card_of(name: str) -> dict[str, float]:
    """An encoder's published main metrics by task, in percent.

    Raises:
        SettingsError: it isn't among the seven.
    """
    figures: dict[str, dict[str, float]] = published()["tasks"]
    if name not in figures:
        raise SettingsError(f"reference {name!r} isn't known; expected one of {', '.join(figures)}")
    return figures[name]
