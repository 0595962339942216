"""A report as one page of HTML: no network, no script, light and dark, wide and narrow."""

from __future__ import annotations

import html
from collections.abc import Sequence

COLOURS = ("#2f6fde", "#d9822b", "#2a9d6f", "#b5489b", "#8a7a2f", "#5b5fc7")
"""Of what is drawn together, in order; told apart on light and dark ground."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
:root {{ color-scheme: light dark;
  --ink: #1c2430; --faint: #5d6875; --line: #d8dde4; --ground: #fff }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6eaf0; --faint: #9aa5b3; --line: #38414d; --ground: #14191f }} }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 1340px; margin: 0 auto; padding: 16px }}
h1 {{ font-size: 22px; overflow-wrap: anywhere }} h2 {{ font-size: 16px; margin: 20px 0 4px }}
.plots {{ display: grid; gap: 8px 24px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)) }}
svg {{ width: 100%; height: auto }} svg text {{ fill: var(--faint); font-size: 11px }}
.axis {{ stroke: var(--line) }} .wide {{ overflow-x: auto }}
table {{ border-collapse: collapse }}
td, th {{ padding: 3px 12px 3px 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap }}
td:first-child, th:first-child {{ text-align: left }}
td.words, th.words {{ white-space: normal; text-align: left; min-width: min(220px, 44vw);
  overflow-wrap: anywhere }}
.key::before {{ content: "■ "; color: var(--c) }}
.bar {{ display: inline-block; width: 110px; height: 10px; border-radius: 2px;
  background: linear-gradient(var(--c), var(--c)) 0 / var(--w) 100% no-repeat, var(--line) }}
.parts {{ display: flex; height: 14px; gap: 1px; margin: 6px 0 }}
.parts i {{ flex: var(--n) 1 2px; background: var(--c) }}
.tiles {{ display: grid; gap: 8px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)) }}
.tiles div {{ border: 1px solid var(--line); border-radius: 6px; padding: 8px 12px }}
.tiles b {{ display: block; font-size: 20px; font-weight: 600 }}
.outcome {{ border-left: 4px solid var(--c); padding: 4px 12px; overflow-wrap: anywhere }}
.keys {{ margin: 4px 0 }} .keys span {{ margin-right: 14px; white-space: nowrap }}
figure {{ margin: 0; min-width: 0 }}
figcaption, .note {{ color: var(--faint); font-size: 13px; overflow-wrap: anywhere }}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""


def whole_page(title: str, body: str) -> str:
    """The page's text; `title` is text, `body` HTML."""
    return _PAGE.format(title=html.escape(title), body=body)


class Words(str):
    """A cell of words, which may take several lines."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls by itself where it is too wide; cells and names are HTML."""
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    names = "".join(_cell(name, "th") for name in head)
    return f'<div class="wide"><table><tr>{names}</tr>{lines}</table></div>'


def _cell(cell: str, tag: str = "td") -> str:
    kind = ' class="words"' if isinstance(cell, Words) else ""
    return f"<{tag}{kind}>{cell}</{tag}>"


def svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    """A drawing of these parts, as wide as there is room; `label` says what it shows."""
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(label)}">'
    return f"{head}{''.join(parts)}</svg>"


def line(x1: float, y1: float, x2: float, y2: float, style: str = "") -> str:
    """A line of a drawing; `style` is a class, as `axis`."""
    styled = f' class="{style}"' if style else ""
    return f'<line{styled} x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, words: str, anchor: str) -> str:
    """Text of a drawing, at its start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'
