"""What a run leaves beside its table: report.json, and the page of it."""

from __future__ import annotations

import logging
from dataclasses import asdict

from stella_ray.encode.models import EncoderSpec
from stella_ray.pipeline.earlier import earlier_reports
from stella_ray.pipeline.estimate import EstimateSettings
from stella_ray.pipeline.rates import costs_of
from stella_ray.pipeline.report import RunReport
from stella_ray.pipeline.run_page import NIGHTS, run_page
from stella_ray.storage import StorageSettings, write_text

log = logging.getLogger(__name__)


def save(
    report: RunReport,
    places: list[str],
    asked: EstimateSettings,
    spec: EncoderSpec,
    storage: StorageSettings = StorageSettings(),
) -> None:
    """Write report.json to each place and its page beside it; what can't be is a word in the log.

    Args:
        report: of a run that has ended, in whatever way.
        places: of the JSON files.
        asked: the price, and what to compare the run's time with.
        spec: the encoder.
        storage: where the places are.
    """
    if report.pool:
        try:
            report.costs = costs_of(report, asked, spec)
        except Exception as error:
            log.warning("the run's cost isn't known (%s)", _reason(error))
    if not report.save(*places, storage=storage):
        return  # each further try of a store that is away would take its whole patience again
    try:
        page = run_page(asdict(report), earlier_reports(report.table, NIGHTS + 1, storage))
    except Exception as error:
        log.warning("the report's page could not be drawn (%s)", _reason(error))
        return
    for place in map(page_beside, places):
        try:
            write_text(place, page, storage)
        except Exception as error:
            log.warning("%s: the report's page could not be written (%s)", place, _reason(error))


def page_beside(place: str) -> str:
    """Where the page of a report lies: `report.html` for `report.json`."""
    return f"{place.removesuffix('.json')}.html"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
