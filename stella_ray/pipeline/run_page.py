"""A run's report as one page for people: how it went, and this night against the last ones."""

from __future__ import annotations

import html
from collections.abc import Sequence

from stella_ray.pipeline import run_plots
from stella_ray.pipeline.page import COLOURS, table, whole_page
from stella_ray.pipeline.run_plots import duration, short
from stella_ray.pipeline.run_tables import (
    BAD,
    FINE,
    bar,
    costs_table,
    encoders_table,
    gate_table,
    made_with,
    queues_table,
    rejects_table,
)
from stella_ray.pipeline.run_values import Report, amount, count, part, when

NIGHTS = 30
"""Earlier runs that are shown beside this one."""

WORKERS = ("read", "encode", "write")
"""Stages whose seconds are those of all workers together."""

MOMENTS = {
    "first_receipt": ("first block back", "pipeline"),
    "first_batch": ("first window encoded", "job"),
}
"""Seconds that say when something was, after whose start, not how long it took."""


def run_page(report: Report, earlier: Sequence[Report]) -> str:
    """The page.

    Args:
        report: what report.json holds.
        earlier: the reports of runs before it, the newest first; older ones may lack fields.
    """
    history = part(report, "history")
    parts = [
        _outcome(report),
        _tiles(report),
        _documents(report),
        '<div class="plots">',
        *_throughput(part(history, "timeline"), amount(part(report, "seconds"), "embed")),
        _lengths(report, part(history, "lengths")),
        _stages(part(report, "seconds")),
        "</div>",
        encoders_table(history.get("actors") or []),
        queues_table(part(history, "waits")),
        rejects_table(report),
        gate_table(report.get("gate") or []),
        costs_table(part(report, "costs"), report),
        _nights(report, [one for one in earlier if one.get("run_id") != report.get("run_id")]),
        made_with(report),
    ]
    return whole_page(f"{_table_name(report)}, run {report.get('run_id')}", "".join(parts))


def _outcome(report: Report) -> str:
    outcome = str(report.get("outcome"))
    fine = outcome == "published"
    says = html.escape(outcome)
    if fine:
        says = f"published: version {count(report, 'version')}"
        before = report.get("live_before")
        says += f", after {before:,}" if isinstance(before, int) else ""
    elif outcome == "unfinished":
        says = "unfinished: the run was broken off, or a bug's traceback is in the job's log"
    began = f"{when(report)} UTC, took {duration(amount(part(report, 'seconds'), 'total'))}"
    return (
        f'<p class="outcome" style="--c:{FINE if fine else BAD}"><b>{says}</b><br>'
        f'<span class="note">{began} · {html.escape(str(report.get("table")))}</span></p>'
    )


def _tiles(report: Report) -> str:
    cost = part(report, "costs").get("cost")
    share = report.get("matrix_share")
    tiles = {
        "documents read": count(report, "rows_read"),
        "embedded": count(report, "embedded"),
        "rejected": count(report, "rejected"),
        "tokens": short(amount(report, "tokens")),
        "tokens/s": short(amount(report, "tokens_per_second")),
        "encoders busy": f"{amount(report, 'device_busy'):.0%}" if report.get("tokens") else None,
        "of the matrix rate": f"{share:.0%}" if isinstance(share, float) else None,
        "cost": f"{cost:,.2f}" if isinstance(cost, float) else None,
        "rows in the table": count(report, "table_rows") if report.get("table_rows") else None,
    }
    cells = (f"<div>{name}<b>{value}</b></div>" for name, value in tiles.items() if value)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _documents(report: Report) -> str:
    """What became of the rows read and what the table holds, as sums."""
    fates = ("embedded", "unchanged", "rejected", "repeated")
    words = [f"{count(report, 'rows_read')} rows read = {_sum(report, fates)}"]
    if report.get("table_documents"):
        kept = ("embedded", "unchanged", "kept_unseen")
        words.append(f"{count(report, 'table_documents')} documents = {_sum(report, kept)}")
    more = {
        "deleted": "deleted",
        "replaced": "old texts replaced",
        "refreshed": "refreshed (kept columns changed, the vector stayed)",
        "bad_shards": "bad shards",
        "commits": "commits",
        "committed_rows": "rows committed",
    }
    others = [f"{count(report, name)} {says}" for name, says in more.items() if report.get(name)]
    lines = "".join(f"<div>{one}</div>" for one in [*words, ", ".join(others)] if one)
    return f"<h2>Documents</h2>{_split(report, fates)}{lines}"


def _throughput(timeline: Report, spent: float) -> list[str]:
    span = amount(timeline, "span_seconds")
    plots = {"documents": "Documents read a second", "tokens": "Tokens encoded a second"}
    out = []
    for colour, (name, title) in zip(COLOURS, plots.items(), strict=False):
        amounts = timeline.get(name) or []
        if not span or not any(amounts):
            continue
        # The last span is cut off by the pipeline's end; a fifth of it is enough to tell a rate.
        rest = min(span, max(span / 5, spent - span * (len(amounts) - 1)))
        rates = [one / span for one in amounts[:-1]] + [amounts[-1] / rest]
        drawn = run_plots.over_time(rates, span, title, colour)
        out.append(f"<figure><h2>{title}</h2>{drawn}</figure>")
    return out


def _lengths(report: Report, lengths: Report) -> str:
    counts = list(lengths.get("rows") or [])
    tokens, padded = amount(report, "tokens"), amount(report, "padded_tokens")
    if not any(counts) and not tokens:
        return ""
    drawn = ""
    if any(counts):
        limits = [int(limit) for limit in lengths["up_to"]]
        names = [_limit(limit) for limit in limits] + [f">{_limit(limits[-1])}"]
        used = [i for i, count in enumerate(counts) if count]
        shown = slice(max(0, used[0] - 1), used[-1] + 1)
        title = "Rows by their length, up to so many tokens"
        drawn = run_plots.histogram(counts[shown], names[shown], title)
    padding = 1 - tokens / padded if padded else 0.0
    split = _split({"tokens": tokens, "padding": padded - tokens}, ("tokens", "padding"))
    return (
        f"<figure><h2>Lengths, padding, truncation</h2>{drawn}{split}"
        f"<figcaption>{sum(counts):,} rows written, by tokens. {tokens:,.0f} tokens,"
        f" {padding:.1%} padding; {count(report, 'truncated')} rows cut at max_tokens;"
        f" {count(report, 'halvings')} times the token budget was halved for want of memory."
        "</figcaption></figure>"
    )


def _stages(seconds: Report) -> str:
    if not seconds:
        return ""
    own = [name for name in seconds if name not in (*WORKERS, *MOMENTS, "total")]
    out = ["<figure><h2>Seconds by stage</h2>"]
    groups = (
        ("driver", own, COLOURS[0]),
        ("all workers", [name for name in WORKERS if name in seconds], COLOURS[1]),
    )
    for title, names, colour in groups:
        most = max((amount(seconds, name) for name in names), default=0.0) or 1.0
        rows = [
            [
                html.escape(name),
                f"{amount(seconds, name):,.1f}",
                bar(amount(seconds, name) / most, colour),
            ]
            for name in names
        ]
        out += [table([title, "seconds", ""], rows)] if rows else []
    moments = [
        f"{says} {amount(seconds, name):,.1f} s after the {whose}'s start"
        for name, (says, whose) in MOMENTS.items()
        if name in seconds
    ]
    out.append(f"<figcaption>{', '.join(moments)}</figcaption></figure>")
    return "".join(out)


def _nights(report: Report, earlier: Sequence[Report]) -> str:
    if not earlier:
        return ""
    runs = [*reversed(earlier[:NIGHTS]), report]
    names = [when(run) for run in runs]
    plots = []
    drawn = {
        "Documents embedded": [amount(run, "embedded") for run in runs],
        "Tokens a second": [amount(run, "tokens_per_second") for run in runs],
        "Seconds": [amount(part(run, "seconds"), "total") for run in runs],
    }
    for title, values in drawn.items():
        plots.append(f"<figure><h2>{title}</h2>{run_plots.nights(values, names, title)}</figure>")
    rows = [
        [
            f"<b>{name[5:]}</b>" if run is report else name[5:],
            "published" if run.get("outcome") == "published" else _failure(run),
            *(count(run, key) for key in ("rows_read", "embedded", "rejected", "table_rows")),
            short(amount(run, "tokens_per_second")),
            duration(amount(part(run, "seconds"), "total")),
        ]
        for run, name in zip(reversed(runs), reversed(names), strict=True)
    ]
    head = ("began, UTC", "outcome", "read", "embedded", "rejected", "rows", "tokens/s", "took")
    return (
        f'<h2>This night against the last {len(earlier[:NIGHTS])}</h2><div class="plots">'
        f"{''.join(plots)}</div>{table(head, rows)}"
    )


def _split(counts: Report, names: Sequence[str]) -> str:
    """A bar cut by these counts, and what its colours are."""
    there = [(COLOURS[i], name) for i, name in enumerate(names) if amount(counts, name) > 0]
    parts = "".join(f'<i style="--c:{c};--n:{amount(counts, name):g}"></i>' for c, name in there)
    keys = " ".join(
        f'<span class="key" style="--c:{c}">{count(counts, name)} {name}</span>'
        for c, name in there
    )
    return f'<div class="parts">{parts}</div><div class="keys">{keys}</div>' if there else ""


def _sum(report: Report, names: Sequence[str]) -> str:
    return " + ".join(f"{count(report, name)} {name.replace('_', ' ')}" for name in names)


def _failure(run: Report) -> str:
    return html.escape(str(run.get("outcome")).partition(":")[0])


def _limit(limit: int) -> str:
    return str(limit) if limit < 1024 else f"{limit / 1024:g}k"


def _table_name(report: Report) -> str:
    return str(report.get("table")).rpartition("/")[2].removesuffix(".lance")
