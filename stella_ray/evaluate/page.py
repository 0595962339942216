"""An evaluation as one page: an encoder beside BM25, hybrid and the card, or two side by side."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from stella_ray.evaluate.bootstrap import interval
from stella_ray.evaluate.compare import Comparison, Row, ends, percent, verdict
from stella_ray.evaluate.long_reference import card_set, long_figures
from stella_ray.evaluate.plots import Point, differences, key, over_positions
from stella_ray.evaluate.questions import BUCKETS, UNKNOWN
from stella_ray.evaluate.results import TaskResult
from stella_ray.pipeline.page import table, whole_page

RANKINGS = ("vectors", "bm25", "hybrid")


def encoder_page(name: str, results: Iterable[TaskResult]) -> str:
    """The page of one encoder: its scores, and long sets by position beside words and both.

    Args:
        name: the encoder's.
        results: of all rankings.
    """
    tasks: dict[str, dict[str, TaskResult]] = {}
    for one in results:
        tasks.setdefault(one.task, {})[one.ranking] = one
    long = {task: own for task, own in tasks.items() if _is_long(own)}
    body = ""
    if others := [own["vectors"] for own in tasks.values() if "vectors" in own]:
        body += "<h2>Scores</h2>" + _scores(others)
    if long:
        body += "<h2>Long sets, beside words alone and both fused</h2>" + _long_table(long)
        body += _CARD_NOTE.format(html.escape(long_figures()["source"]))
        body += "<h2>By where the answer begins</h2>" + key(RANKINGS)
        for metric in ("recall@1", "recall@5"):
            body += f'<h2>{metric}</h2><div class="plots">'
            body += "".join(_position_plot(task, own, metric) for task, own in long.items())
            body += "</div>"
        body += _INTERVALS
    return whole_page(f"Evaluation of {name}", body)


def comparison_page(found: Comparison) -> str:
    """The page of two encoders: differences by type, by task and by where the answer begins."""
    body = (
        f"<p>A is {html.escape(found.a)}, B is {html.escape(found.b)}. A difference is B's score"
        f" minus A's, in points, with its 95% interval; grey ones are no more than noise, or have"
        " none.</p>"
        '<div class="plots">'
    )
    for title, rows in (("By type", found.means), ("By task", found.tasks)):
        if rows:
            body += f"<figure><h2>{title}</h2>{differences([_drawn(row) for row in rows])}</figure>"
    body += "</div>"
    if found.positions:
        body += "<h2>Long sets together, by where the answer begins</h2>"
        body += key([f"A: {found.a}", f"B: {found.b}"]) + '<div class="plots">'
        for metric in dict.fromkeys(row.metric for row in found.positions):
            rows = [row for row in found.positions if row.metric == metric]
            plot = differences([_drawn(row) for row in rows])
            body += f"<figure><h2>{metric}, both</h2>{_both(rows)}</figure>"
            body += f"<figure><h2>{metric}, B - A</h2>{plot}</figure>"
        body += "</div>"
    for title, rows in (
        ("Means over tasks", found.means),
        ("Tasks", found.tasks),
        ("Answers by where they begin", found.positions),
    ):
        if rows:
            body += f"<h2>{title}</h2>" + table(_HEAD, [_cells(row) for row in rows])
    if found.alone:
        names = html.escape(", ".join(found.alone))
        body += f'<p class="note">Only one has these, or of other data: {names}</p>'
    body += (
        f'<p class="note">Paired bootstrap, {found.resamples:,} resamples; p is adjusted over the'
        " lines of its table by Holm's method.</p>" + _INTERVALS
    )
    return whole_page(f"{found.b} against {found.a}", body)


_HEAD = ("", "metric", "A", "B", "B - A", "95% interval", "p", "units", "", "")

_CARD_NOTE = '<p class="note">The card: {}</p>'

_INTERVALS = (
    '<p class="note">An interval says how far other questions of the same kind would move the'
    " score, not what another seed or another domain would. Where all of n questions were found,"
    " its ends are equal; up to 3 / n may still be missed in truth.</p>"
)


def _is_long(own: dict[str, TaskResult]) -> bool:
    return any("positions" in one.facts for one in own.values())


def _scores(results: Sequence[TaskResult]) -> str:
    rows = []
    for one in results:
        units = one.units.get(one.metric)
        low_high = interval(units) if units and units.values else None
        cell = f"[{percent(low_high[0])}, {percent(low_high[1])}]" if low_high else "-"
        count = f"{len(units.values):,}" if units else "-"
        names = (html.escape(text) for text in (one.task, one.type, one.metric))
        rows.append([*names, percent(one.score), cell, count])
    return table(("task", "type", "metric", "score", "95% interval", "units"), rows)


def _long_table(long: dict[str, dict[str, TaskResult]]) -> str:
    head = ["set", "ranking", "questions", "past 512", "documents", "recall@1", "recall@5"]
    head += ["mrr@10", "recall@5, past 512", "card: stella-base-zh", "stella-large-zh"]
    rows = []
    for task, own in long.items():
        card = long_figures()["sets"].get(card_set(task) or "", {})
        for ranking in (one for one in RANKINGS if one in own):
            result = own[ranking]
            counts = result.facts["counts"]
            scores = [result.metrics[m] for m in ("recall@1", "recall@5", "mrr@10")]
            past = result.metrics.get("long/recall@5")
            figures = [card.get(name) for name in ("stella-base-zh", "stella-large-zh")]
            rows.append(
                [
                    html.escape(task),
                    ranking,
                    f"{counts['questions']:,}",
                    f"{counts.get('long', 0):,}",
                    f"{result.facts['documents']:,}",
                    *map(percent, scores),
                    "-" if past is None else percent(past),
                    *(
                        f"{figure:.2f}" if figure is not None and ranking == "vectors" else "-"
                        for figure in figures
                    ),
                ]
            )
    return table(head, rows)


def _position_plot(task: str, own: dict[str, TaskResult], metric: str) -> str:
    lines: dict[str, dict[str, Point]] = {}
    counts: dict[str, int] = {}
    for ranking in RANKINGS:
        # A line without points keeps its colour.
        rows = own[ranking].facts["positions"] if ranking in own else []
        counts |= {row["bucket"]: row["questions"] for row in rows}
        lines[ranking] = {row["bucket"]: tuple(row[metric]) for row in rows}
    there = [name for name in (*BUCKETS, UNKNOWN) if name in counts]
    plot = over_positions(there, [counts[name] for name in there], lines)
    return f"<figure>{plot}<figcaption>{html.escape(task)}</figcaption></figure>"


def _both(rows: Sequence[Row]) -> str:
    """Both sides' shares; the intervals are those of the differences, drawn beside."""
    lines = {
        side: {row.name: (value, value, value) for row in rows for value in [getattr(row, side)]}
        for side in ("a", "b")
    }
    counts = [row.found.units if row.found else 0 for row in rows]
    return over_positions([row.name for row in rows], counts, lines)


def _drawn(row: Row) -> tuple[str, float, Point | None, bool]:
    found = row.found
    drawn = (row.difference, found.low, found.high) if found else None
    return row.name, row.difference, drawn, row.real


def _cells(row: Row) -> list[str]:
    p = "-" if row.p is None else f"{row.p:.4f}"
    units = f"{row.found.units:,}" if row.found else "-"
    scores = (percent(row.a), percent(row.b), percent(row.difference, True), ends(row.found))
    texts = (row.name, row.metric, *scores, p, units, verdict(row), row.note)
    return [html.escape(text) for text in texts]
