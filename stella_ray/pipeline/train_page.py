"""The training report as one page: what each type of examples did, step by step."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stella_ray.pipeline.page import COLOURS, table, whole_page

if TYPE_CHECKING:
    from stella_ray.learn.learner import StepReport
    from stella_ray.pipeline.train import Trained

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 200, 56, 24


def write_page(path: Path, title: str, trained: Trained) -> None:
    """Write the page: a table of sources, curves, and the held-out metrics.

    Args:
        path: the file.
        title: of the page.
        trained: the run.
    """
    sources = list(dict.fromkeys(one.source for one in trained.reports))
    by_source = {name: [r for r in trained.reports if r.source == name] for name in sources}
    body = _summary(by_source)
    plots: dict[str, Callable[[StepReport], float]] = {
        "Loss": lambda r: r.loss,
        "Gradient norm, before clipping": lambda r: r.gradient_norm,
        "Penalty's share of loss and penalty": lambda r: r.penalty_share,
        "Share of long texts": lambda r: r.long_texts / max(1, r.texts),
    }
    body += '<div class="plots">'
    for name, number in plots.items():
        curves = {s: [(r.step + 1, number(r)) for r in rows] for s, rows in by_source.items()}
        body += f"<figure style='margin:0'><h2>{name}</h2>{_plot(curves)}</figure>"
    body += "</div>" + _held_out(trained.evaluations)
    path.write_text(whole_page(title, body), encoding="utf-8")


def _summary(by_source: Mapping[str, Sequence[StepReport]]) -> str:
    head = ("source", "steps", "rows", "tokens", "padding", "long texts", "loss, first", "last")
    rows = []
    for i, (name, steps) in enumerate(by_source.items()):
        tenth = max(1, len(steps) // 10)
        tokens, padded = sum(r.tokens for r in steps), sum(r.padded_tokens for r in steps)
        long = sum(r.long_texts for r in steps) / max(1, sum(r.texts for r in steps))
        ends = (steps[:tenth], steps[-tenth:])
        losses = [f"{sum(r.loss for r in end) / tenth:.4f}" for end in ends]
        key = (
            f'<span class="key" style="--c:{COLOURS[i % len(COLOURS)]}">{html.escape(name)}</span>'
        )
        rows.append(
            [
                key,
                f"{len(steps):,}",
                f"{sum(r.rows for r in steps):,}",
                f"{tokens:,}",
                f"{1 - tokens / max(1, padded):.1%}",
                f"{long:.1%}",
                *losses,
            ]
        )
    return table(head, rows)


def _held_out(evaluations: Mapping[int, Mapping[str, float]]) -> str:
    if not evaluations:
        return ""
    names = sorted({name for metrics in evaluations.values() for name in metrics})
    rows = [
        [f"{steps:,}", *(f"{metrics[n]:.4f}" if n in metrics else "–" for n in names)]
        for steps, metrics in sorted(evaluations.items())
    ]
    head = ["after step", *(html.escape(name) for name in names)]
    return "<h2>Held-out sets</h2>" + table(head, rows)


def _plot(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Curves over steps, from 0 up, each in its source's colour."""
    points = [point for curve in curves.values() for point in curve]
    last = max(step for step, _ in points)
    top = max(value for _, value in points) or 1.0

    def place(step: int, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - 8) * (step - 1) / max(1, last - 1)
        return f"{x:.1f},{HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 10) * value / top:.1f}"

    parts = []
    for share in (0.0, 0.5, 1.0):
        x, y = place(1, share * top).split(",")
        parts.append(f'<line class="axis" x1="{x}" x2="{WIDTH - 8}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">'
            f"{share * top:.3g}</text>"
        )
    for step, anchor in ((1, "start"), (last, "end")):
        x = place(step, 0).split(",")[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - 6}" text-anchor="{anchor}">step {step:,}</text>')
    for i, (name, curve) in enumerate(curves.items()):
        line = " ".join(place(*point) for point in curve)
        colour = COLOURS[i % len(COLOURS)]
        if len(curve) > 1:
            parts.append(
                f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5">'
                f"<title>{html.escape(name)}</title></polyline>"
            )
        parts += [
            f'<circle cx="{x}" cy="{y}" r="2" fill="{colour}"/>'
            for x, y in (place(*point).split(",") for point in curve[:200])
        ]
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
