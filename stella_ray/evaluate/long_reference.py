"""The model card's figures on its six long sets, to stand beside ours."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any


@functools.cache
def long_figures() -> dict[str, Any]:
    """`sets` has Recall@5 in percent by set and encoder, `average` its mean, `source` its place."""
    file = resources.files(__package__) / "reference" / "long.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def card_set(task: str) -> str | None:
    """The card's name of a set that is called this or has it in its name; None if it has none."""
    plain = task.casefold()
    for name in long_figures()["sets"]:
        if name.casefold().removesuffix("2018") in plain:
            return str(name)
    return None
