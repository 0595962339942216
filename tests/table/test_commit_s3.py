"""A commit on S3 is made once, whatever becomes of its request or its answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stella_ray.errors import TableError
from stella_ray.table.fragments import write_rows
from stella_ray.table.vectors import VectorTable
from tests.conftest import S3Place, through
from tests.s3 import FaultProxy
from tests.table.conftest import ENCODER, SCHEMA, addresses_of, ids_in, numbered, rows


@pytest.fixture
def far(s3: S3Place, s3_proxy: FaultProxy) -> VectorTable:
    """A table of five rows behind the proxy."""
    storage = through(s3, s3_proxy, retry_seconds=60)  # a busy machine's server is slow to answer
    table = VectorTable.create(f"{s3.uri}/db/docs.lance", SCHEMA, ENCODER, storage)
    return table.commit(write_rows(rows(numbered(5)), table.uri, storage))


@pytest.mark.parametrize("kind", ["lose", "reset", "cut", "503"])
def test_rows_are_added_once_whatever_the_store_answers(
    far: VectorTable, s3_proxy: FaultProxy, kind: Any
) -> None:
    fragments = write_rows(rows(numbered(5, 5)), far.uri, far.storage)
    before = far.version
    fault = s3_proxy.inject(kind, times=2, match=r"PUT .*/_versions/")
    far.commit(fragments)
    assert fault.done
    assert far.version == before + 1
    there = VectorTable.open(far.uri, storage=far.storage)
    assert (there.version, ids_in(there)) == (before + 1, sorted(numbered(10)))


def test_a_commit_that_deletes_is_made_once_too(far: VectorTable, s3_proxy: FaultProxy) -> None:
    fragments = write_rows(rows(["new"]), far.uri, far.storage)
    doomed = addresses_of(far, ["d1", "d2"])
    s3_proxy.inject("lose", times=1, match=r"PUT .*/_versions/")
    far.commit(fragments, doomed)
    there = VectorTable.open(far.uri, storage=far.storage)
    assert ids_in(there) == ["d0", "d3", "d4", "new"]


def test_a_commit_that_never_gets_through_is_one_line(
    far: VectorTable, s3_proxy: FaultProxy
) -> None:
    fragments = write_rows(rows(["new"]), far.uri, far.storage)
    far = VectorTable.open(far.uri, storage=replace(far.storage, retry_seconds=12))
    s3_proxy.inject("503", match=r"PUT .*/_versions/")
    with pytest.raises(TableError, match="was overloaded or out of order") as raised:
        far.commit(fragments)
    assert "\n" not in str(raised.value)
    s3_proxy.clear()
    assert len(ids_in(VectorTable.open(far.uri, storage=far.storage))) == 5
