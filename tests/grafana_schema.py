"""A JSON schema of a Grafana dashboard: the fields that deploy/grafana.json uses, and no others.

From Grafana's own JSON schemas (grafana-foundation-sdk: dashboard, prometheus, timeseries, stat,
bargauge), schemaVersion 42. What is allowed there and stands not here is a reason to add it here.
"""

from __future__ import annotations

from typing import Any

from tests.deploy_schema import TEXT, WHOLE, Schema, fields, one_of, some

ANY_TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
NONE: Schema = {"type": "array", "maxItems": 0}
UNITS = ("short", "s", "percentunit")

DATASOURCE = fields({"type": one_of("prometheus"), "uid": one_of("${datasource}")})
PLACE = fields({
    "h": {"type": "integer", "minimum": 1},
    "w": {"type": "integer", "minimum": 1, "maximum": 24},
    "x": {"type": "integer", "minimum": 0, "maximum": 23},
    "y": WHOLE,
})  # fmt: skip
QUERY = fields({
    "refId": {"type": "string", "pattern": "^[A-Z]$"},
    "datasource": DATASOURCE,
    "expr": TEXT,
    "legendFormat": ANY_TEXT,
    "range": FLAG,
    "instant": FLAG,
})  # fmt: skip
LINES = fields({
    "drawStyle": one_of("line", "bars", "points"),
    "lineWidth": NUMBER,
    "fillOpacity": NUMBER,
    "showPoints": one_of("auto", "never", "always"),
})  # fmt: skip
COLOUR = fields({"mode": one_of("palette-classic", "fixed")}, {"fixedColor": TEXT})
REDUCED = fields({"calcs": some(one_of("lastNotNull")), "fields": ANY_TEXT, "values": FLAG})
ORIENTATION = one_of("auto", "vertical", "horizontal")
OPTIONS = {
    "timeseries": fields({
        "legend": fields({
            "showLegend": FLAG,
            "displayMode": one_of("list", "table", "hidden"),
            "placement": one_of("bottom", "right"),
            "calcs": NONE,
        }),
        "tooltip": fields({
            "mode": one_of("single", "multi", "none"), "sort": one_of("asc", "desc", "none")
        }),
    }),
    "stat": fields({
        "reduceOptions": REDUCED,
        "colorMode": one_of("value", "background", "none"),
        "graphMode": one_of("none", "line", "area"),
        "textMode": one_of("auto", "value", "value_and_name", "name", "none"),
        "justifyMode": one_of("auto", "center"),
        "orientation": ORIENTATION,
        "wideLayout": FLAG,
        "showPercentChange": FLAG,
        "percentChangeColorMode": one_of("standard", "inverted", "same_as_value"),
    }),
    "bargauge": fields({
        "reduceOptions": REDUCED,
        "displayMode": one_of("basic", "lcd", "gradient"),
        "orientation": ORIENTATION,
        "showUnfilled": FLAG,
        "valueMode": one_of("color", "text", "hidden"),
    }),
}  # fmt: skip


def panel(kind: str, custom: dict[str, Schema]) -> Schema:
    defaults = fields(
        {"unit": one_of(*UNITS), "min": NUMBER, "color": COLOUR, **custom}, {"max": NUMBER}
    )
    return fields({
        "id": WHOLE,
        "type": one_of(kind),
        "title": TEXT,
        "description": ANY_TEXT,
        "datasource": DATASOURCE,
        "gridPos": PLACE,
        "fieldConfig": fields({"defaults": defaults, "overrides": NONE}),
        "options": OPTIONS[kind],
        "targets": some(QUERY),
    })  # fmt: skip


ROW = fields({
    "id": WHOLE, "type": one_of("row"), "title": TEXT, "collapsed": FLAG, "gridPos": PLACE,
    "panels": NONE,
})  # fmt: skip
OPTION = fields({"text": {}, "value": {}})
VARIABLE: dict[str, Any] = {
    "name": {"type": "string", "pattern": r"^\w+$"},
    "label": TEXT,
    "query": TEXT,
    "refresh": one_of(0, 1, 2),
    "multi": FLAG,
    "includeAll": FLAG,
    "current": OPTION,
    "options": NONE,
    "regex": ANY_TEXT,
    "hide": one_of(0, 1, 2),
}
VARIABLES = {"oneOf": [
    fields({**VARIABLE, "type": one_of("datasource")}),
    fields({
        **VARIABLE, "type": one_of("query"), "datasource": DATASOURCE, "definition": TEXT,
        "allValue": TEXT, "sort": {"type": "integer", "minimum": 0, "maximum": 8},
    }),
]}  # fmt: skip

DASHBOARD = fields({
    "uid": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,40}$"},
    "title": TEXT,
    "description": TEXT,
    "tags": some(TEXT),
    "timezone": one_of("browser", "utc"),
    "editable": FLAG,
    "graphTooltip": one_of(0, 1, 2),
    "schemaVersion": one_of(42),
    "version": WHOLE,
    "refresh": {"type": "string", "pattern": "^[0-9]+[smhd]$"},
    "time": fields({"from": TEXT, "to": TEXT}),
    "annotations": fields({"list": NONE}),
    "links": NONE,
    "templating": fields({"list": some(VARIABLES)}),
    "panels": some({"oneOf": [
        ROW, panel("timeseries", {"custom": LINES}), panel("stat", {}), panel("bargauge", {}),
    ]}),
})  # fmt: skip
