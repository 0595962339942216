"""The dashboard that is handed out, against Grafana's schema and against what the code tells."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from stella_ray.pipeline.metrics import METRICS
from tests.grafana_schema import DASHBOARD

ROOT = Path(__file__).parent.parent
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket",)}
"""What Ray's exporter puts behind a name, and a histogram's quantiles are read from."""


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "deploy/grafana.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def queries(dashboard: dict[str, Any]) -> list[str]:
    return [query["expr"] for panel in dashboard["panels"] for query in panel.get("targets", [])]


def exported() -> dict[str, str]:
    """Every name that Ray's exporter gives, and the metric it is of."""
    return {
        f"ray_stella_ray_{name}{suffix}": name
        for name, told in METRICS.items()
        for suffix in SUFFIXES[told.kind]
    }


def test_the_dashboard_is_one_that_grafana_s_schema_allows(dashboard: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(DASHBOARD)
    jsonschema.validate(dashboard, DASHBOARD)
    broken = {**dashboard, "panels": [{**dashboard["panels"][1], "type": "graph"}]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, DASHBOARD)


def test_the_dashboard_asks_for_every_metric_that_is_told_and_for_no_other(
    queries: list[str], dashboard: dict[str, Any]
) -> None:
    asked = queries + [one["query"] for one in dashboard["templating"]["list"][1:]]
    used = {name for query in asked for name in re.findall(r"ray_\w+", query)}
    assert used == set(exported())


def test_queries_are_by_run_and_table_and_by_tags_that_their_metric_has(
    queries: list[str],
) -> None:
    names = exported()
    for query in queries:
        assert query.count("(") == query.count(")"), query
        for name, filters in re.findall(r"(ray_\w+)\{([^}]*)\}", query):
            asked = set(re.findall(r'(\w+)=~"\$\w+"', filters))
            assert {"run", "table"} <= asked <= set(METRICS[names[name]].tags), query
        by = {tag.strip() for found in re.findall(r"by \(([^)]*)\)", query)
              for tag in found.split(",")}  # fmt: skip
        for name in re.findall(r"ray_\w+", query):
            assert by <= {*METRICS[names[name]].tags, "le"}, query


def test_panels_have_numbers_of_their_own_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for a, b in itertools.combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]


def test_every_metric_stands_in_the_documentation() -> None:
    page = (ROOT / "docs/watching.md").read_text("utf-8")
    told = set(re.findall(r"`stella_ray_(\w+)`", page))
    assert told == set(METRICS)
