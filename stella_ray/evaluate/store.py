"""Records of tasks that are done, so that a run that is started again only does the others."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from stella_ray.encode.models import EncoderSettings, EncoderSpec
from stella_ray.errors import TableError
from stella_ray.evaluate.results import TaskResult
from stella_ray.storage import StorageSettings, read_json, write_json
from stella_ray.storage_faults import storage_errors

log = logging.getLogger("stella_ray.evaluate")

DEFINITION = 1
"""Counts up when what is measured changes, so that older records no longer serve."""


class ResultStore:
    """One encoder's records in a folder: `<output>/<name>-<fingerprint>/<task>.….json`.

    Args:
        output: the folder of all encoders; on a disk or S3.
        settings: the encoder's: its number format changes scores in the third digit.
        spec: the same, found.
        storage: where S3 is.
    """

    def __init__(
        self,
        output: str,
        settings: EncoderSettings,
        spec: EncoderSpec,
        storage: StorageSettings = StorageSettings(),
    ) -> None:
        self.fingerprint = str(spec.fingerprint["digest"])
        name = re.sub(r"[^\w.-]", "_", spec.name.rstrip("/").rpartition("/")[2])
        self.folder = f"{output.rstrip('/')}/{name}-{self.fingerprint[:12]}"
        self.storage = storage
        self._dtype = settings.dtype

    def find(
        self, task: str, revision: str, protocol: Mapping[str, Any], ranking: str = "vectors"
    ) -> TaskResult | None:
        """The record of a task, if it was made of this data by this protocol; else None."""
        asked = TaskResult(
            task=task, type="", ranking=ranking, metric="", metrics={}, revision=revision  # type: ignore[arg-type]
        )  # fmt: skip
        path = self._path(asked, protocol)
        try:
            with storage_errors(path, self.storage, TableError):
                found = read_json(path, self.storage)
            return None if found is None else TaskResult.from_json(found)
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("%s is no record of a task; the task is done again", path)
            return None

    def keep(self, result: TaskResult, protocol: Mapping[str, Any]) -> None:
        """Write a record, whole or not at all."""
        path = self._path(result, protocol)
        with storage_errors(path, self.storage, TableError):
            write_json(path, result.to_json(), self.storage)

    def _path(self, result: TaskResult, protocol: Mapping[str, Any]) -> str:
        parts = {
            **protocol,
            "definition": DEFINITION,
            "fingerprint": self.fingerprint,
            "revision": result.revision,
            "dtype": self._dtype,
        }
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.folder}/{result.file_name.removesuffix('.json')}.{digest}.json"
