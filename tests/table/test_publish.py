"""What readers see, when it moves, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import lance
import numpy as np
import pytest

from stella_ray.errors import IncompleteRun, TableError
from stella_ray.rows import key_array
from stella_ray.table import publish as publishing
from stella_ray.table.index import tidy
from stella_ray.table.publish import LIVE, PREVIOUS, publish, rollback, status, verify
from stella_ray.table.search import open_live
from stella_ray.table.vectors import VectorTable
from tests.table.conftest import SCHEMA, add, addresses_of, ids_in, numbered, rows


def keys(*ids: str) -> np.ndarray:
    return np.unique(key_array(rows(ids)))


def tags(table: VectorTable) -> dict[str, int]:
    return VectorTable.open(table.uri).tagged()


def test_a_table_of_exactly_the_expected_rows_is_verified(docs: VectorTable) -> None:
    verify(docs, np.empty(0, "S16"))
    add(docs, numbered(2_000))
    add(docs, ["late"])
    docs.commit([], addresses_of(docs, ["d7"]))
    verify(docs, keys("late", *[i for i in numbered(2_000) if i != "d7"]))


@pytest.mark.parametrize(
    ("there", "expected", "counts"),
    [
        (["a"], ["a", "b", "c"], "2 rows missing, 0 foreign, 0 doubled"),
        (["a", "b", "c"], ["a"], "0 rows missing, 2 foreign, 0 doubled"),
        (["a", "a", "b", "a"], ["a", "b"], "0 rows missing, 0 foreign, 2 doubled"),
        (["a", "a", "c"], ["a", "b"], "1 rows missing, 1 foreign, 1 doubled"),
        ([], ["a"], "1 rows missing, 0 foreign, 0 doubled"),
        (["a"], [], "0 rows missing, 1 foreign, 0 doubled"),
        (numbered(1_500), [], "0 rows missing, 1,500 foreign, 0 doubled"),
    ],
)
def test_missing_foreign_and_doubled_rows_are_counted_and_refused(
    docs: VectorTable, there: list[str], expected: list[str], counts: str
) -> None:
    if there:
        add(docs, there)
    with pytest.raises(IncompleteRun) as caught:
        verify(docs, keys(*expected))
    assert str(caught.value) == (
        f"{docs.uri} version {docs.version} is not what the corpus says: {counts};"
        " it was not published"
    )


def test_a_changed_text_or_title_is_another_row(docs: VectorTable) -> None:
    add(docs, ["a", "b"], texts=["text of a", "changed"], titles=["changed", "title of b"])
    with pytest.raises(IncompleteRun, match="2 rows missing, 2 foreign, 0 doubled"):
        verify(docs, keys("a", "b"))


def test_the_first_publishing_sets_live_alone(docs: VectorTable) -> None:
    add(docs, ["a"])
    assert publish(docs) is None
    assert tags(docs) == {LIVE: 2}


def test_each_publishing_keeps_the_version_before_as_the_way_back(docs: VectorTable) -> None:
    publish(add(docs, ["a"]))
    assert publish(add(docs, ["b"])) == 2
    assert tags(docs) == {LIVE: 3, PREVIOUS: 2}
    add(docs, ["c"])
    assert publish(add(docs, ["d"])) == 3
    assert tags(docs) == {LIVE: 5, PREVIOUS: 3}


def test_publishing_the_same_version_again_changes_nothing(docs: VectorTable) -> None:
    publish(add(docs, ["a"]))
    publish(add(docs, ["b"]))
    assert publish(docs) == 3
    assert publish(VectorTable.open(docs.uri)) == 3
    assert tags(docs) == {LIVE: 3, PREVIOUS: 2}
    assert VectorTable.open(docs.uri).version == 3


def test_a_reader_sees_the_old_rows_until_the_moment_of_publishing(docs: VectorTable) -> None:
    publish(add(docs, ["a", "b"]))
    add(docs, ["c"])
    docs.commit([], addresses_of(docs, ["a"]))
    tidy(docs)
    assert ids_in(open_live(docs.uri)) == ["a", "b"]
    reader = open_live(docs.uri)
    publish(docs)
    assert ids_in(open_live(docs.uri)) == ["b", "c"]
    assert ids_in(reader) == ["a", "b"], "an open reader keeps its version"


def killed_after_one_tag(monkeypatch: pytest.MonkeyPatch, job: Callable[[], object]) -> None:
    """Run `job` until it has moved one tag."""
    moved: list[str] = []
    move = publishing._point

    def die_at_the_second(table: VectorTable, tag: str, version: int) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(tag)
        move(table, tag, version)

    with monkeypatch.context() as patched:
        patched.setattr(publishing, "_point", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            job()


def test_a_publishing_killed_between_the_tags_leaves_live_and_the_next_one_mends_it(
    docs: VectorTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(add(docs, ["a"]))
    publish(add(docs, ["b"]))
    add(docs, ["c"])
    killed_after_one_tag(monkeypatch, lambda: publish(docs))
    assert tags(docs) == {LIVE: 3, PREVIOUS: 3}
    assert ids_in(open_live(docs.uri)) == ["a", "b"]
    with pytest.raises(TableError, match="no earlier published version"):
        rollback(docs.uri)
    assert publish(VectorTable.open(docs.uri)) == 3
    assert tags(docs) == {LIVE: 4, PREVIOUS: 3}


def test_a_rollback_killed_between_the_tags_has_rolled_back(
    docs: VectorTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(add(docs, ["a"]))
    publish(add(docs, ["b"]))
    killed_after_one_tag(monkeypatch, lambda: rollback(docs.uri))
    assert tags(docs) == {LIVE: 2, PREVIOUS: 2}
    assert ids_in(open_live(docs.uri)) == ["a"]
    publish(docs)
    assert tags(docs) == {LIVE: 3, PREVIOUS: 2}


def test_rollback_swaps_and_a_second_one_undoes_it(docs: VectorTable) -> None:
    publish(add(docs, ["a"]))
    publish(add(docs, ["b"]))
    assert rollback(docs.uri) == (2, 3)
    assert tags(docs) == {LIVE: 2, PREVIOUS: 3}
    assert ids_in(open_live(docs.uri)) == ["a"]
    assert rollback(docs.uri) == (3, 2)
    assert tags(docs) == {LIVE: 3, PREVIOUS: 2}
    assert VectorTable.open(docs.uri).version == 3, "no row was written or deleted"


def test_the_night_after_a_rollback_publishes_and_keeps_the_rolled_back_to_version(
    docs: VectorTable,
) -> None:
    publish(add(docs, ["a"]))
    publish(add(docs, ["bad"]))
    rollback(docs.uri)
    docs.commit([], addresses_of(docs, ["bad"]))
    assert publish(docs) == 2
    assert tags(docs) == {LIVE: 4, PREVIOUS: 2}
    assert ids_in(open_live(docs.uri)) == ["a"]


@pytest.mark.parametrize("published", [0, 1])
def test_a_rollback_without_an_earlier_version_changes_nothing(
    docs: VectorTable, published: int
) -> None:
    add(docs, ["a"])
    if published:
        publish(docs)
    found = tags(docs)
    with pytest.raises(TableError) as caught:
        rollback(docs.uri)
    assert str(caught.value) == (
        f"{docs.uri}: no earlier published version to go back to; tags: {found or 'none'}"
    )
    assert tags(docs) == found


def test_tags_of_other_people_are_left_alone(docs: VectorTable) -> None:
    docs.dataset.tags.create("keep", 1)
    publish(add(docs, ["a"]))
    publish(add(docs, ["b"]))
    rollback(docs.uri)
    assert tags(docs) == {"keep": 1, LIVE: 2, PREVIOUS: 3}


def test_cleaning_up_keeps_both_published_versions(docs: VectorTable) -> None:
    publish(add(docs, ["a"]))
    publish(add(docs, ["b"]))
    add(docs, ["c"])
    docs.dataset.cleanup_old_versions(timedelta(0), error_if_tagged_old_versions=False)
    assert [one.version for one in status(docs.uri)] == [4, 3, 2]
    rollback(docs.uri)
    assert ids_in(open_live(docs.uri)) == ["a"]


def test_status_tells_versions_newest_first_with_rows_time_and_tags(docs: VectorTable) -> None:
    publish(add(docs, ["a", "b"]))
    docs.commit([], addresses_of(docs, ["a"]))
    publish(docs)
    add(docs, ["c", "d", "e"])
    found = status(docs.uri)
    assert [(one.version, one.rows, one.tags) for one in found] == [
        (4, 4, []), (3, 1, [LIVE]), (2, 2, [PREVIOUS]), (1, 0, []),
    ]  # fmt: skip
    times = [one.written for one in found]
    assert times == sorted(times, reverse=True)
    assert abs(datetime.now() - times[0]) < timedelta(minutes=5), "the clock of this machine"


def test_status_after_a_rollback_shows_live_on_the_older_version(docs: VectorTable) -> None:
    publish(add(docs, ["a"]))
    publish(add(docs, ["b"]))
    rollback(docs.uri)
    assert [(one.version, one.tags) for one in status(docs.uri)] == [
        (3, [PREVIOUS]), (2, [LIVE]), (1, []),
    ]  # fmt: skip


def test_status_tells_all_tags_of_a_version(docs: VectorTable) -> None:
    publish(add(docs, ["a"]))
    docs.dataset.tags.create("a-backup", 2)
    assert status(docs.uri)[0].tags == ["a-backup", LIVE]


def test_status_of_a_rebuild_counts_each_versions_own_rows(docs: VectorTable) -> None:
    publish(add(docs, numbered(5)))
    docs.rebuild(SCHEMA, docs.encoder())
    assert [one.rows for one in status(docs.uri)] == [0, 5, 0]


def test_status_of_many_versions_counts_every_one(docs: VectorTable) -> None:
    for i in range(120):
        add(docs, [f"d{i}"])
    found = status(docs.uri)
    assert [one.version for one in found] == list(range(121, 0, -1))
    assert [one.rows for one in found] == list(range(120, -1, -1))


def test_status_and_rollback_of_a_missing_table_say_so(docs: VectorTable) -> None:
    for job in (status, rollback):
        with pytest.raises(TableError, match="no such table"):
            job(docs.uri.replace("docs", "nope"))


def test_lance_itself_reads_the_version_that_is_live(docs: VectorTable) -> None:
    publish(add(docs, ["a"]))
    add(docs, ["b"])
    assert lance.dataset(docs.uri, version=LIVE).count_rows() == 1
