"""Lines over lengths, readable on a light and on a dark page."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

GREY = "#808890"
"""Of the words and axes: contrast 3.5 or more on white and on black."""
COLOURS = ("#1f8fd6", "#e07a1f", GREY)


def draw(place: Path, lengths: list[int], lines: dict[str, list[float]]) -> None:
    """Draw one line a way.

    Args:
        place: an .svg file, or .png.
        lengths: tokens of a document.
        lines: speeds in the order of `lengths`.
    """
    mpl.rcParams["svg.hashsalt"] = "stella-ray"  # the same picture is the same file
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for (name, speeds), colour in zip(lines.items(), COLOURS, strict=False):
        axes.plot(lengths, speeds, color=colour, marker="o", linewidth=2, markersize=5, label=name)
    axes.legend(frameon=False, labelcolor="linecolor")
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.set_ylim(0, None)
    axes.set_xlabel("tokens of a document", color=GREY)
    axes.set_title(
        "Tokens per second, sentence-transformers at 128 = 1", color=GREY, loc="left", fontsize=11
    )
    axes.tick_params(colors=GREY)
    axes.grid(axis="y", color=GREY, alpha=0.3)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GREY)
    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(
        place, transparent=True, metadata={"Date": None} if place.suffix == ".svg" else {}
    )
