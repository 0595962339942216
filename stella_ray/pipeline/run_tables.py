"""The tables of a run's page, each HTML; empty where there is nothing to tell."""

from __future__ import annotations

import html
from collections.abc import Sequence

from stella_ray.pipeline.page import COLOURS, Words, table
from stella_ray.pipeline.run_values import Report, amount, count, part

ACTORS = 64
"""Encoders that are shown each by itself."""

FINE, BAD = "#2a9d6f", "#c8443c"


def encoders_table(actors: Sequence[Report]) -> str:
    """Each encoder's share of the work."""
    if not actors:
        return ""
    most = max(amount(one, "seconds") for one in actors) or 1.0
    rows = [
        [
            html.escape(str(one.get("actor"))),
            f"{amount(one, 'seconds'):,.1f}",
            bar(amount(one, "seconds") / most, COLOURS[2]),
            count(one, "windows"),
            count(one, "rows"),
            count(one, "tokens"),
            html.escape(str(one.get("node")).partition(".")[0]),
        ]
        for one in actors[:ACTORS]
    ]
    head = ("encoder", "busy, s", "", "windows", "rows", "tokens", "node")
    rest = len(actors) - len(rows)
    more = f'<p class="note">{rest:,} more are in report.json</p>' if rest > 0 else ""
    return f"<h2>Encoders</h2>{table(head, rows)}{more}"


def queues_table(waits: Report) -> str:
    """How long blocks waited before each stage."""
    says = {"encode": "for an encoder", "write": "for a writer", "receive": "for the driver"}
    rows = [
        [
            says.get(name, html.escape(name)),
            count(wait, "blocks"),
            f"{amount(wait, 'seconds') / max(1.0, amount(wait, 'blocks')):,.2f}",
            f"{amount(wait, 'longest'):,.2f}",
        ]
        for name, wait in waits.items()
        if amount(wait, "blocks")
    ]
    head = ("waited", "blocks", "mean, s", "longest, s")
    return f"<h2>Queues</h2>{table(head, rows)}" if rows else ""


def rejects_table(report: Report) -> str:
    """Rejects by kind of reason, most first."""
    kinds = part(report, "reject_kinds")
    if not kinds:
        return ""
    rows = [
        [Words(html.escape(kind)), f"{rows_of:,}"]
        for kind, rows_of in sorted(kinds.items(), key=lambda item: -item[1])
    ]
    where = html.escape(str(report.get("rejects")))
    return (
        f"<h2>Rejects by reason</h2>{table((Words('reason'), 'rows'), rows)}"
        f'<p class="note">each with its shard, row and id: {where}</p>'
    )


def gate_table(checks: Sequence[Report]) -> str:
    """What the gate found."""
    if not checks:
        return ""
    rows = []
    for check in checks:
        passed = bool(check.get("passed"))
        mark = f'<b style="color:{FINE if passed else BAD}">{"passed" if passed else "failed"}</b>'
        rows.append([html.escape(str(check.get("name"))), mark, Words(html.escape(_says(check)))])
    return f"<h2>The gate</h2>{table(('check', '', Words('found')), rows)}"


def costs_table(costs: Report, report: Report) -> str:
    """What the run cost, and what an estimate would have said."""
    if not costs:
        return ""
    rows = [["this run", *_cost(costs), Words(html.escape(str(report.get("pool"))))]]
    expected = part(costs, "expected")
    if expected:
        rows.append(
            ["as estimated", *_cost(expected), Words(html.escape(str(expected.get("rate"))))]
        )
    price = costs.get("price_per_hour")
    note = "" if price is not None else "no price was given: --estimate.price_per_hour"
    return (
        f"<h2>Encoder hours and cost</h2>{table(('', 'hours', 'cost', Words('by')), rows)}"
        f'<p class="note">{note or f"at {price:,.2f} an encoder hour, from start to end"}</p>'
    )


def made_with(report: Report) -> str:
    """Encoder, pool and packages."""
    encoder = part(report, "encoder")
    versions = ", ".join(f"{name} {v}" for name, v in part(report, "versions").items())
    says = f"encoder {encoder.get('name')} ({encoder.get('digest')}); {report.get('pool')}"
    return f'<h2>Made with</h2><p class="note">{html.escape(says)}<br>{html.escape(versions)}</p>'


def bar(share: float, colour: str) -> str:
    """A bar of this share of its width."""
    return f'<span class="bar" style="--c:{colour};--w:{share:.1%}"></span>'


def _cost(costs: Report) -> list[str]:
    cost = costs.get("cost")
    return [
        f"{amount(costs, 'encoder_hours'):,.3f}",
        f"{cost:,.2f}" if isinstance(cost, int | float) else "–",
    ]


def _says(check: Report) -> str:
    rest = {k: v for k, v in check.items() if k not in ("name", "passed")}
    return ", ".join(str(value) for value in rest.values() if value not in (None, ""))
