"""Two encoders side by side: what is called a difference, and the pages that say so."""

from __future__ import annotations

import dataclasses
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stella_ray.errors import CorpusError
from stella_ray.evaluate.compare import Comparison, as_text, compare, holm
from stella_ray.evaluate.long_reference import card_set, long_figures
from stella_ray.evaluate.longtext import evaluate_long
from stella_ray.evaluate.page import comparison_page, encoder_page
from stella_ray.evaluate.results import TaskResult, Units
from tests.evaluate.test_longtext import Reader, a_set

NASTY = "<b>&\"'[red]甲"


def result(task: str, shares: float, seed: int = 0, kind: str = "Retrieval") -> TaskResult:
    values = (np.random.default_rng(seed).random(300) < shares).astype(float).tolist()
    units = Units(names=[f"q{i}" for i in range(300)], values=values)
    return TaskResult(
        task=task,
        type=kind,
        metric="ndcg@10",
        metrics={"ndcg@10": float(np.mean(values))},
        units={"ndcg@10": units},
        revision="r",
    )


def without_units(task: str, score: float) -> TaskResult:
    return TaskResult(task=task, type="Clustering", metric="v", metrics={"v": score})


@pytest.fixture(scope="module")
def sides() -> tuple[list[TaskResult], list[TaskResult]]:
    """A reads 512 characters, B 1,200; B is far better on one other task, and as good on two."""
    sets = [a_set("cmrc2018_x", per_bucket=8), a_set(NASTY, first=100, per_bucket=8)]
    a, b = (list(evaluate_long(sets, Reader(reach))) for reach in (512, 1_200))
    a += [result("Far", 0.3, 1), result("Near", 0.5, 2), result("Same", 0.5, 3)]
    b += [result("Far", 0.6, 4), result("Near", 0.5, 5), result("Same", 0.5, 3)]
    a += [without_units("Topics", 0.5), result("OnlyA", 0.5)]
    b += [without_units("Topics", 0.6), dataclasses.replace(result("Moved", 0.5), revision="s")]
    return a, [*b, dataclasses.replace(result("OnlyA", 0.5), revision="other data")]


@pytest.fixture(scope="module")
def found(sides: tuple[list[TaskResult], list[TaskResult]]) -> Comparison:
    return compare(*sides, ("short", NASTY), resamples=2_000)


def test_what_differs_is_told_from_noise(found: Comparison) -> None:
    rows = {row.name: row for row in found.tasks}
    assert list(rows) == ["cmrc2018_x", NASTY, "Far", "Near", "Same", "Topics"]
    assert rows["Far"].real
    assert rows["cmrc2018_x"].real
    assert not rows["Near"].real
    same = rows["Same"]
    assert (same.difference, same.p) == (0, 1)
    assert (rows["Topics"].found, rows["Topics"].real) == (None, False)
    assert rows["Topics"].difference == pytest.approx(0.1)
    assert found.alone == ["Moved", "OnlyA"]


def test_means_are_of_all_and_of_each_type_and_say_where_there_is_no_interval(
    found: Comparison, sides: tuple[list[TaskResult], list[TaskResult]]
) -> None:
    means = {row.name: row for row in found.means}
    assert list(means) == [
        "all but LongText, 4 tasks", "LongText, 2 tasks", "Retrieval, 3 tasks", "Clustering, 1 task"
    ]  # fmt: skip
    assert means["all but LongText, 4 tasks"].found is None
    assert "1 of 4 made of no units" in means["all but LongText, 4 tasks"].note
    wanted = np.mean([one.score for one in sides[1] if one.task in ("Far", "Near", "Same")])
    assert means["Retrieval, 3 tasks"].b == pytest.approx(wanted)


def test_the_difference_is_where_the_longer_encoder_reads_and_the_shorter_does_not(
    found: Comparison,
) -> None:
    rows = {row.name: row for row in found.positions if row.metric == "recall@5"}
    assert [row.found.units for row in rows.values() if row.found] == [16] * 5  # of both sets
    assert [row.difference for row in list(rows.values())[:3]] == [0, 0, 0]
    assert all(rows[name].real for name in ("512-1024", "1024+"))
    assert not any(rows[name].real for name in ("0-128", "128-256", "256-512"))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_its_definition(p: list[float]) -> None:
    adjusted = holm(p)
    order = sorted(range(len(p)), key=lambda i: p[i])
    worst = 0.0
    for place, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - place) * p[i]))
        assert adjusted[i] == pytest.approx(worst)


def test_adjusting_for_many_tasks_needs_more_than_one_lucky_one() -> None:
    assert holm([0.03, 0.5, 0.9]) == pytest.approx([0.09, 1.0, 1.0])
    assert holm([0.001, 0.02, 0.9]) == pytest.approx([0.003, 0.04, 0.9])


def test_encoders_without_a_common_task_are_not_compared() -> None:
    with pytest.raises(CorpusError, match=r"no task of the same data in common; .* found X, Y"):
        compare([result("X", 0.5)], [result("Y", 0.5)], ("a", "b"))


def test_the_comparison_is_plain_json(found: Comparison) -> None:
    told = json.loads(json.dumps(found.to_json()))
    row = told["tasks"][2]
    assert (row["name"], row["more_than_noise"]) == ("Far", True)
    assert row["difference"] == pytest.approx(row["found"]["b"] - row["found"]["a"])


def test_the_terminal_shows_each_task_with_its_interval_and_names_as_they_are(
    found: Comparison,
) -> None:
    text = as_text(found, width=160)
    (line,) = [line for line in text.splitlines() if line.startswith("Far")]
    assert re.search(r"ndcg@10 +\d+\.\d\d +\d+\.\d\d +\+\d+\.\d\d +\[\+", line)
    assert line.rstrip().endswith("B better")
    assert NASTY in text
    assert "not compared: Moved, OnlyA" in text


def checked(page: str) -> str:
    """A page that stands alone and is whole; its plots are XML."""
    assert page.startswith("<!doctype html>")
    for outside in ("http://", "https://", "<script", "<link", "src=", "@import"):
        assert outside not in page
    assert NASTY not in page
    assert "&lt;b&gt;&amp;&quot;&#x27;[red]甲" in page
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert plots
    for plot in plots:
        ElementTree.fromstring(plot)
        numbers = [float(n) for n in re.findall(r' (?:cx|x1|x2)="([^"]+)"', plot)]
        assert all(0 <= number <= 400 for number in numbers)
    return page


def test_the_page_of_two_stands_alone_and_shows_what_the_table_says(found: Comparison) -> None:
    page = checked(comparison_page(found))
    for row in (*found.tasks, *found.means):
        assert f"{100 * row.difference:+.2f}" in page
    assert "Moved, OnlyA" in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_of_one_has_bm25_hybrid_and_the_cards_figures_beside(
    sides: tuple[list[TaskResult], list[TaskResult]],
) -> None:
    page = checked(encoder_page(NASTY, sides[0]))
    assert page.count("<td>bm25</td>") == 2
    assert "<td>96.08</td>" in page  # the card's, of CMRC2018
    assert "n=8" in page
    other = encoder_page("no long sets", [result("Far", 0.5)])
    assert "By where the answer begins" not in other
    assert "Far" in other


def test_the_cards_figures_are_those_that_its_own_averages_are_made_of() -> None:
    figures = long_figures()
    for encoder, average in figures["average"].items():
        scores = [row[encoder] for row in figures["sets"].values()]
        assert len(scores) == 6
        assert sum(scores) / 6 == pytest.approx(average, abs=0.0051)


def test_a_set_is_the_cards_by_its_name() -> None:
    names = ["cmrc2018_trial", "drcd_dev_t2s", "cail2019_dev", "multifieldqa_zh", "chinese_squad"]
    assert [card_set(name) for name in names] == [
        "CMRC2018", "DRCD", "CAIL", "Multifieldqa_zh", "Squad"
    ]  # fmt: skip
    assert card_set("mine") is None
