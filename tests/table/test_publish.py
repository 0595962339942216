"""What readers see, when it moves, and the way back."""

from __future__ import annotations

from collections.abc import Callable

import lance
import pytest

from stella_ray.errors import SettingsError, TableError
from stella_ray.table import publish as publishing
from stella_ray.table.index import tidy
from stella_ray.table.publish import LIVE, PREVIOUS, promote, publish, rollback
from stella_ray.table.search import open_live
from stella_ray.table.vectors import VectorTable
from tests.table.conftest import add, addresses_of, ids_in


def tags(table: VectorTable) -> dict[str, int]:
    return VectorTable.open(table.uri).tagged()


def public(table: VectorTable) -> dict[str, int]:
    """The tags, but those of the runs."""
    return {name: version for name, version in tags(table).items() if not name.startswith("run-")}


def publish_rows(table: VectorTable, *ids: str) -> int | None:
    """Add rows and publish them as the run `rVERSION`."""
    add(table, ids)
    return publish(table, f"r{table.version}")


def test_the_first_publishing_sets_live_and_the_runs_own_tag(docs: VectorTable) -> None:
    add(docs, ["a"])
    assert publish(docs, "20260101T000000-abc123") is None
    assert tags(docs) == {LIVE: 2, "run-20260101T000000-abc123": 2}


def test_each_publishing_keeps_the_version_before_as_the_way_back(docs: VectorTable) -> None:
    publish_rows(docs, "a")
    assert publish_rows(docs, "b") == 2
    assert tags(docs) == {LIVE: 3, PREVIOUS: 2, "run-r2": 2, "run-r3": 3}
    add(docs, ["c"])
    assert publish_rows(docs, "d") == 3
    assert public(docs) == {LIVE: 5, PREVIOUS: 3}


def test_publishing_the_same_version_again_changes_nothing(docs: VectorTable) -> None:
    publish_rows(docs, "a")
    publish_rows(docs, "b")
    found = tags(docs)
    assert publish(docs, "r3") == 3
    assert publish(VectorTable.open(docs.uri), "r3") == 3
    assert tags(docs) == found
    assert VectorTable.open(docs.uri).version == 3


def test_nights_in_which_nothing_changed_leave_no_tags(docs: VectorTable) -> None:
    publish_rows(docs, "a")
    found = tags(docs)
    for night in range(3):
        publish(docs, f"night-{night}")
    assert tags(docs) == found


def test_a_reader_sees_the_old_rows_until_the_moment_of_publishing(docs: VectorTable) -> None:
    publish_rows(docs, "a", "b")
    add(docs, ["c"])
    docs.commit([], addresses_of(docs, ["a"]))
    tidy(docs)
    assert ids_in(open_live(docs.uri)) == ["a", "b"]
    reader = open_live(docs.uri)
    publish(docs, "r")
    assert ids_in(open_live(docs.uri)) == ["b", "c"]
    assert ids_in(reader) == ["a", "b"], "an open reader keeps its version"


def killed_after(monkeypatch: pytest.MonkeyPatch, moves: int, job: Callable[[], object]) -> None:
    """Run `job` until it has moved so many tags."""
    moved: list[str] = []
    move = publishing._point

    def die_at_the_next(table: VectorTable, tag: str, version: int) -> None:
        if len(moved) == moves:
            raise KeyboardInterrupt
        moved.append(tag)
        move(table, tag, version)

    with monkeypatch.context() as patched:
        patched.setattr(publishing, "_point", die_at_the_next)
        with pytest.raises(KeyboardInterrupt):
            job()


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_publishing_killed_between_the_tags_leaves_live_and_the_next_one_mends_it(
    docs: VectorTable, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    publish_rows(docs, "a")
    publish_rows(docs, "b")
    add(docs, ["c"])
    killed_after(monkeypatch, moves, lambda: publish(docs, "r4"))
    assert public(docs) == {LIVE: 3, PREVIOUS: 3 if moves == 2 else 2}
    assert ids_in(open_live(docs.uri)) == ["a", "b"]
    assert publish(VectorTable.open(docs.uri), "r5") == 3
    assert public(docs) == {LIVE: 4, PREVIOUS: 3}
    assert [v for name, v in tags(docs).items() if name in ("run-r4", "run-r5")] == [4]


def test_a_tag_that_was_moved_though_the_answer_was_lost_counts_as_moved(
    docs: VectorTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_rows(docs, "a")
    add(docs, ["b"])
    kind = type(docs.dataset.tags)

    def losing_the_answer(move: Callable[..., None]) -> Callable[..., None]:
        def lost(*args: object) -> None:
            move(*args)
            raise OSError("connection reset by peer")

        return lost

    for name in ("create", "update"):
        monkeypatch.setattr(kind, name, losing_the_answer(getattr(kind, name)))
    assert publish(docs, "r3") == 2
    assert tags(docs) == {LIVE: 3, PREVIOUS: 2, "run-r2": 2, "run-r3": 3}
    rollback(docs.uri)
    assert public(docs) == {LIVE: 2, PREVIOUS: 3}


def test_a_tag_that_could_not_be_moved_is_a_table_error_and_live_stays(
    docs: VectorTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_rows(docs, "a")
    add(docs, ["b"])

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(type(docs.dataset.tags), "create", broken)
    with pytest.raises(TableError, match="moving the tag run-r3 failed: disk full"):
        publish(docs, "r3")
    assert tags(docs) == {LIVE: 2, "run-r2": 2}


def test_a_rollback_killed_between_the_tags_has_rolled_back(
    docs: VectorTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_rows(docs, "a")
    publish_rows(docs, "b")
    killed_after(monkeypatch, 1, lambda: rollback(docs.uri))
    assert public(docs) == {LIVE: 2, PREVIOUS: 2}
    assert ids_in(open_live(docs.uri)) == ["a"]
    with pytest.raises(TableError, match="no earlier published version"):
        rollback(docs.uri)
    publish(docs, "r3")
    assert public(docs) == {LIVE: 3, PREVIOUS: 2}


def test_rollback_swaps_and_a_second_one_undoes_it(docs: VectorTable) -> None:
    publish_rows(docs, "a")
    publish_rows(docs, "b")
    assert rollback(docs.uri) == (2, 3)
    assert public(docs) == {LIVE: 2, PREVIOUS: 3}
    assert ids_in(open_live(docs.uri)) == ["a"]
    assert rollback(docs.uri) == (3, 2)
    assert public(docs) == {LIVE: 3, PREVIOUS: 2}
    assert VectorTable.open(docs.uri).version == 3, "no row was written or deleted"


def test_the_night_after_a_rollback_publishes_and_keeps_the_rolled_back_to_version(
    docs: VectorTable,
) -> None:
    publish_rows(docs, "a")
    publish_rows(docs, "bad")
    rollback(docs.uri)
    docs.commit([], addresses_of(docs, ["bad"]))
    assert publish(docs, "r4") == 2
    assert public(docs) == {LIVE: 4, PREVIOUS: 2}
    assert ids_in(open_live(docs.uri)) == ["a"]


@pytest.mark.parametrize("published", [0, 1])
def test_a_rollback_without_an_earlier_version_changes_nothing(
    docs: VectorTable, published: int
) -> None:
    add(docs, ["a"])
    if published:
        publish(docs, "r2")
    found = tags(docs)
    with pytest.raises(TableError) as caught:
        rollback(docs.uri)
    assert str(caught.value) == (
        f"{docs.uri}: no earlier published version to go back to; tags:"
        f" {'live (2), run-r2 (2)' if published else 'none'}"
    )
    assert tags(docs) == found


def test_tags_of_other_people_are_left_alone(docs: VectorTable) -> None:
    docs.dataset.tags.create("keep", 1)
    publish_rows(docs, "a")
    publish_rows(docs, "b")
    rollback(docs.uri)
    promote(docs.uri, "3")
    assert public(docs) == {"keep": 1, LIVE: 3, PREVIOUS: 2}


@pytest.mark.parametrize("name", ["2", "run-r2", "mine"])
def test_any_published_version_can_be_made_live_again_by_number_or_tag(
    docs: VectorTable, name: str
) -> None:
    for doc_id in ("a", "b", "c"):
        publish_rows(docs, doc_id)
    docs.dataset.tags.create("mine", 2)
    assert promote(docs.uri, name) == (2, 4)
    assert public(docs) == {"mine": 2, LIVE: 2, PREVIOUS: 4}
    assert ids_in(open_live(docs.uri)) == ["a"]
    assert promote(docs.uri, name) == (2, 2), "twice is once"
    assert public(docs) == {"mine": 2, LIVE: 2, PREVIOUS: 4}
    assert rollback(docs.uri) == (4, 2)


def test_a_version_that_never_passed_the_gate_is_made_live_by_force_alone(
    docs: VectorTable,
) -> None:
    publish_rows(docs, "a")
    add(docs, ["b"])
    with pytest.raises(SettingsError) as caught:
        promote(docs.uri, "3")
    assert str(caught.value) == (
        f"{docs.uri}: version 3 never passed the publishing gate; give --force true to make it"
        " live all the same"
    )
    assert public(docs) == {LIVE: 2}
    assert promote(docs.uri, "3", force=True) == (3, 2)
    assert public(docs) == {LIVE: 3, PREVIOUS: 2}
    assert "run-r3" not in tags(docs), "force is no passing of the gate"


def test_a_table_that_was_never_published_can_be_promoted_by_force(docs: VectorTable) -> None:
    add(docs, ["a"])
    assert promote(docs.uri, "2", force=True) == (2, None)
    assert tags(docs) == {LIVE: 2}


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("9", "no version 9; see jobs/publish.py status"),
        ("0", "no version 0; see jobs/publish.py status"),
        ("run-r9", "no tag 'run-r9'; expected a version's number or a tag: live (2), run-r2 (2)"),
        ("-1", "no tag '-1'; expected"),
        ("", "no tag ''; expected"),
    ],
)
def test_a_version_that_is_not_there_is_refused_with_those_that_are(
    docs: VectorTable, version: str, words: str
) -> None:
    publish_rows(docs, "a")
    with pytest.raises(TableError) as caught:
        promote(docs.uri, version, force=True)
    assert words in str(caught.value)
    assert public(docs) == {LIVE: 2}


def test_a_table_that_is_not_ours_is_never_promoted(docs: VectorTable) -> None:
    uri = docs.uri.replace("docs", "theirs")
    lance.write_dataset(docs.dataset.to_table(), uri).update_schema_metadata({}, replace=True)
    with pytest.raises(TableError, match=r"jobs/embed\.py did not write"):
        promote(uri, str(lance.dataset(uri).version), force=True)


def test_rollback_and_promote_of_a_missing_table_say_so(docs: VectorTable) -> None:
    missing = docs.uri.replace("docs", "nope")
    for job in (lambda: rollback(missing), lambda: promote(missing, "1")):
        with pytest.raises(TableError, match="no such table"):
            job()


def test_lance_itself_reads_the_version_that_is_live(docs: VectorTable) -> None:
    publish_rows(docs, "a")
    add(docs, ["b"])
    assert lance.dataset(docs.uri, version=LIVE).count_rows() == 1
