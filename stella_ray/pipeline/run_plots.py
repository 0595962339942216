"""The drawings of a run's page: rates over time, a histogram, and one night beside others."""

from __future__ import annotations

import html
from collections.abc import Sequence

from stella_ray.pipeline.page import COLOURS, line, svg, text

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 170, 46, 8, 10, 26
"""Of a drawing's own units: as wide as a telephone, so that its letters can be read there."""

FAINT = "#8b95a1"
"""What stands beside the thing itself: other nights."""

LABELS = 13
"""Names that have room below one another's bars."""


def over_time(values: Sequence[float], span: float, label: str, colour: str) -> str:
    """Steps over time, from 0 up.

    Args:
        values: one for each span of time.
        span: its length in seconds.
        label: what is drawn.
        colour: of it.
    """
    parts, y = _axis(max(values))
    step = (WIDTH - LEFT - RIGHT) / len(values)
    corners: list[tuple[float, float]] = [(LEFT, y(0.0))]
    for number, value in enumerate(values):
        corners += [(LEFT + step * number, y(value)), (LEFT + step * (number + 1), y(value))]
    corners.append((WIDTH - RIGHT, y(0.0)))
    path = " ".join(f"{x:.1f},{at:.1f}" for x, at in corners)
    parts.append(f'<polygon points="{path}" fill="{colour}" fill-opacity="0.3"/>')
    path = " ".join(f"{x:.1f},{at:.1f}" for x, at in corners[1:-1])
    parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    total = span * len(values)
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x = LEFT + share * (WIDTH - LEFT - RIGHT)
        parts.append(text(x, HEIGHT - 8, duration(share * total), anchor))
    return svg(WIDTH, HEIGHT, parts, label)


def histogram(counts: Sequence[int], names: Sequence[str], label: str) -> str:
    """A bar for each count, with its name below; of many names every other one.

    Args:
        counts: at least one.
        names: of the bars.
        label: what is drawn.
    """
    return _bars(counts, names, [COLOURS[0]] * len(counts), label)


def nights(values: Sequence[float], names: Sequence[str], label: str) -> str:
    """A bar for each night; the last one is this night, the others are faint.

    Args:
        values: at least one.
        names: of the nights; the first and the last are shown.
        label: what is drawn.
    """
    shown = [""] * len(names)
    shown[0], shown[-1] = names[0] if len(names) > 1 else "", names[-1]
    return _bars(values, shown, [FAINT] * (len(values) - 1) + [COLOURS[0]], label, names)


def _bars(
    values: Sequence[float],
    names: Sequence[str],
    colours: Sequence[str],
    label: str,
    titles: Sequence[str] = (),
) -> str:
    parts, y = _axis(max(values))
    step = (WIDTH - LEFT - RIGHT) / len(values)
    width = min(step * 0.8, 40.0)
    many = len([name for name in names if name]) > LABELS
    for number, (value, name, colour) in enumerate(zip(values, names, colours, strict=True)):
        middle = LEFT + step * (number + 0.5)
        top = y(value)
        says = html.escape(f"{(titles or names)[number]}: {value:,.6g}")
        parts.append(
            f'<rect x="{middle - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}"'
            f' height="{y(0.0) - top:.1f}" fill="{colour}"><title>{says}</title></rect>'
        )
        if name and not (many and number % 2):
            parts.append(_name(middle, name))
    return svg(WIDTH, HEIGHT, parts, label)


def _name(middle: float, name: str) -> str:
    """A name below its bar, moved in where it would stick out of the drawing."""
    half = 3.2 * len(name)
    if middle + half > WIDTH - 2:
        return text(WIDTH - 2, HEIGHT - 8, name, "end")
    if middle - half < 2:
        return text(2, HEIGHT - 8, name, "start")
    return text(middle, HEIGHT - 8, name, "middle")


def _axis(most: float) -> tuple[list[str], _Scale]:
    """Lines at 0, half and all of `most`, and the scale."""
    scale = _Scale(most or 1.0)
    parts = []
    for share in (0.0, 0.5, 1.0):
        at = scale(share * scale.most)
        parts.append(line(LEFT, at, WIDTH - RIGHT, at, "axis"))
        parts.append(text(LEFT - 5, at + 4, short(share * scale.most), "end"))
    return parts, scale


class _Scale:
    """Heights of values between 0 and `most`."""

    def __init__(self, most: float) -> None:
        self.most = most

    def __call__(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / self.most)


def short(value: float) -> str:
    """A number in at most five letters: 940, 1.2k, 35k, 2.1M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            scaled = value / size
            return f"{scaled:.1f}{letter}" if scaled < 9.95 else f"{scaled:.0f}{letter}"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Seconds as a clock has them: 0:42, 3:07:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
