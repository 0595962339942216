"""Which version readers see: the tags `live` and `live-previous`, and the moves between versions.

Every version that passed the gate and was published also has a tag of its run, `run-RUN_ID`, which
keeps it from being cleaned until as many newer ones came as are to be kept (versions.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from stella_ray.errors import SettingsError, TableError
from stella_ray.storage import StorageSettings
from stella_ray.table.fragments import lance_errors, tried
from stella_ray.table.vectors import VectorTable

LIVE, PREVIOUS = "live", "live-previous"
RUN = "run-"
"""How the tags of published runs begin."""
SUSPECT = "suspect-"
"""How the tags of versions begin whose vectors the gate found to be wrong: such rows must not count
as known, or the next run would find nothing to do and publish them."""


def publish(table: VectorTable, run_id: str) -> int | None:
    """Point `live` at the open version and `live-previous` at the one before.

    A version that an earlier run published keeps that run's tag alone: nights in which nothing
    changed leave nothing behind.

    Returns:
        The version that was live before, None if there was none.
    """
    tags = table.tagged()
    before = tags.get(LIVE)
    # In this order: a crash between any two leaves `live` where it was, and no version is live
    # that has no tag of its run.
    if table.version not in passed(tags):
        _point(table, f"{RUN}{run_id}", table.version)
    if before != table.version:
        if before is not None:
            _point(table, PREVIOUS, before)
        _point(table, LIVE, table.version)
    return before


def mark_suspect(table: VectorTable, run_id: str) -> None:
    """Tag the open version as one whose vectors are wrong; it stays for inspection."""
    _point(table, f"{SUSPECT}{run_id}", table.version)


def suspect(tags: Mapping[str, int]) -> int | None:
    """The newest version with wrong vectors, unless a later one is live."""
    found = max((v for name, v in tags.items() if name.startswith(SUSPECT)), default=0)
    return found if found > tags.get(LIVE, 0) else None


def passed(tags: Mapping[str, int]) -> set[int]:
    """The versions that went through the gate, by the tags of their runs."""
    return {version for name, version in tags.items() if name.startswith(RUN)}


def rollback(uri: str, storage: StorageSettings = StorageSettings()) -> tuple[int, int]:
    """Swap `live` and `live-previous`; a second rollback undoes the first.

    Returns:
        The version that is live now, and the one that was.

    Raises:
        TableError: there is nothing to go back to.
    """
    table = VectorTable.open(uri, storage=storage)
    tags = table.tagged()
    if LIVE not in tags or PREVIOUS not in tags or tags[LIVE] == tags[PREVIOUS]:
        raise TableError(
            f"{uri}: no earlier published version to go back to; tags: {_in_words(tags)}"
        )
    _make_live(table, tags[PREVIOUS], tags[LIVE])
    return tags[PREVIOUS], tags[LIVE]


def promote(
    uri: str, version: str, storage: StorageSettings = StorageSettings(), *, force: bool = False
) -> tuple[int, int | None]:
    """Point `live` at any version that is there, and `live-previous` at what was live.

    Args:
        uri: the table.
        version: a number, or a tag such as `run-RUN_ID`.
        storage: where S3 is.
        force: also a version that never went through the gate.

    Returns:
        The version that is live now, and the one that was.

    Raises:
        TableError: no such version or tag, or the table isn't one of ours.
        SettingsError: the version never went through the gate.
    """
    newest = VectorTable.open(uri, storage=storage)
    tags = newest.tagged()
    if not version.isdecimal() and version not in tags:
        raise TableError(
            f"{uri}: no tag {version!r}; expected a version's number or a tag: {_in_words(tags)}"
        )
    number = int(version) if version.isdecimal() else tags[version]
    candidate = VectorTable.open(uri, number, storage=storage)
    candidate.encoder()  # refuses a table that isn't ours
    if number not in passed(tags) and not force:
        raise SettingsError(
            f"{uri}: version {number} never passed the publishing gate; give --force true to make"
            " it live all the same"
        )
    before = tags.get(LIVE)
    if before != number:
        _make_live(newest, number, before)
    return number, before


def _in_words(tags: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({version})" for name, version in sorted(tags.items())) or "none"


def _make_live(table: VectorTable, version: int, before: int | None) -> None:
    # `live` first: it is what readers see, and the other only names a way back.
    _point(table, LIVE, version)
    if before is not None:
        _point(table, PREVIOUS, before)


def _point(table: VectorTable, tag: str, version: int) -> None:
    def move() -> None:
        try:
            if tag in table.dataset.tags.list():
                table.dataset.tags.update(tag, version)
            else:
                table.dataset.tags.create(tag, version)
        except (OSError, ValueError, RuntimeError):
            # The answer may be what was lost, and not the request.
            if table.tagged().get(tag) != version:
                raise

    with lance_errors(table.uri, f"moving the tag {tag}", table.storage):
        tried(table.uri, table.storage, move)
