"""Plots of an evaluation as SVG: scores over positions, and differences with their intervals."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from stella_ray.pipeline.page import COLOURS, line, svg, text

WIDTH, LEFT, RIGHT = 400, 40, 10
"""Of a plot's own units: as wide as a telephone, so that its letters can be read there."""

Point = tuple[float, float, float]
"""A value and the ends of its interval."""


def key(names: Sequence[str]) -> str:
    """What the colours stand for."""
    marks = (
        f'<span class="key" style="--c:{COLOURS[i % len(COLOURS)]}">{html.escape(name)}</span>'
        for i, name in enumerate(names)
    )
    return f'<p class="keys">{" &nbsp; ".join(marks)}</p>'


def over_positions(
    buckets: Sequence[str], counts: Sequence[int], lines: Mapping[str, Mapping[str, Point]]
) -> str:
    """Shares from 0 to 1 over buckets, a line each, with intervals.

    Args:
        buckets: in order.
        counts: questions in each.
        lines: by name, by bucket; a bucket may be missing.
    """
    height, top, bottom = 210, 8, 38
    step = (WIDTH - LEFT - RIGHT) / len(buckets)
    parts = []

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - value)

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(line(LEFT, y(share), WIDTH - RIGHT, y(share), "axis"))
        parts.append(text(LEFT - 5, y(share) + 4, f"{share:.0%}", "end"))
    for number, (name, count) in enumerate(zip(buckets, counts, strict=True)):
        x = LEFT + step * (number + 0.5)
        parts.append(text(x, height - 20, name, "middle"))
        parts.append(text(x, height - 6, f"n={count:,}", "middle"))
    for i, (name, points) in enumerate(lines.items()):
        colour = f'stroke="{COLOURS[i % len(COLOURS)]}" fill="{COLOURS[i % len(COLOURS)]}"'
        # Beside each other, so that intervals of several lines can be told apart.
        shift = 7 * (i - (len(lines) - 1) / 2)
        places = [
            (LEFT + step * (number + 0.5) + shift, points[bucket])
            for number, bucket in enumerate(buckets)
            if bucket in points
        ]
        path = " ".join(f"{x:.1f},{y(point[0]):.1f}" for x, point in places)
        parts.append(f"<g {colour}><title>{html.escape(name)}</title>")
        parts.append(f'<polyline points="{path}" fill="none" stroke-width="1.5"/>')
        for x, (value, low, high) in places:
            parts.append(line(x, y(low), x, y(high)))
            parts.append(f'<circle cx="{x:.1f}" cy="{y(value):.1f}" r="3"/>')
        parts.append("</g>")
    return svg(WIDTH, height, parts, "shares by where the answer begins")


def differences(rows: Sequence[tuple[str, float, Point | None, bool]]) -> str:
    """B minus A, a line each: a dot and its interval about zero.

    Args:
        rows: name, difference, the same with its ends where there is an interval, and whether it
            is more than noise.
    """
    row_height, top, name_height = 34, 6, 14
    height = top + row_height * len(rows) + 22
    reach = max((abs(x) for _, value, ends, _ in rows for x in (ends or (value,))), default=0) or 1

    def place(value: float) -> float:
        middle = WIDTH / 2
        return middle + (middle - RIGHT - 6) * value / reach

    bottom = height - 20
    parts = [line(place(0), top, place(0), bottom, "axis")]
    for value in (-reach, 0.0, reach):
        anchor = "middle" if value == 0 else ("start" if value < 0 else "end")
        parts.append(
            text(place(value), height - 6, f"{100 * value:+.1f}" if value else "0", anchor)
        )
    for number, (name, value, ends, real) in enumerate(rows):
        at = top + row_height * number
        y = at + name_height + 9
        colour = (COLOURS[2] if value > 0 else COLOURS[1]) if real else "#8b95a1"
        parts.append(text(2, at + name_height - 2, name, "start"))
        parts.append(f'<g stroke="{colour}" fill="{colour}">')
        if ends:
            parts.append(line(place(ends[1]), y, place(ends[2]), y))
        parts.append(f'<circle cx="{place(value):.1f}" cy="{y:.1f}" r="3.5"/></g>')
    return svg(WIDTH, height, parts, "differences with 95% intervals")
