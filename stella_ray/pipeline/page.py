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
.key::before {{ content: "■ "; color: var(--c) }}
figure {{ margin: 0 }} figcaption, .note {{ color: var(--faint); font-size: 13px }}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""


def whole_page(title: str, body: str) -> str:
    """The page's text; `title` is text, `body` HTML."""
    return _PAGE.format(title=html.escape(title), body=body)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls by itself where it is too wide; cells and names are HTML."""
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    names = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="wide"><table><tr>{names}</tr>{lines}</table></div>'
