"""What becomes of a row before the encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.encode.tokens import TextTokenizer
from stella_ray.pipeline.judge import Preparation, sound_rows
from stella_ray.pipeline.prepare import with_time
from stella_ray.rows import (
    DOC_BYTES,
    FRESH,
    KEY_BYTES,
    REFRESHED,
    REJECTED,
    REPEATED,
    TEXT_BYTES,
    UNCHANGED,
    key_array,
    prepared,
    row_keys,
    source,
)
from stella_ray.table.keys import KnownKeys
from tests.pipeline.conftest import prepare

YEAR = pa.field("year", pa.int64())
NONE = KnownKeys(1, np.empty(0, f"S{KEY_BYTES}"), np.empty(0, np.uint64))


@pytest.fixture(scope="module")
def how(tiny_encoder: Path) -> Preparation:
    spec = find_encoder(EncoderSettings(path=str(tiny_encoder), max_tokens=16))
    return Preparation(kept=(YEAR,), store_text=True, spec=spec, digest="digest")


def rows(*given: tuple[Any, ...]) -> pa.Table:
    """Rows as read: (id, text), (id, text, year) or (id, text, year, reason)."""
    names = ("doc_id", "text", "year", "reason")
    found = [dict(zip(names, row, strict=False)) for row in given]
    schema = source([YEAR])
    blank = {"shard": 0, "shard_bytes": 1.0, "read_seconds": 0.5}
    return pa.Table.from_pylist(
        [{**dict.fromkeys(schema.names), **blank, "row": i, **r} for i, r in enumerate(found)],
        schema,
    )


def known(block: pa.Table, how: Preparation) -> KnownKeys:
    """The keys of a table that holds these rows."""
    keys = np.sort(key_array(pa.table({"row_key": row_keys(block, how.kept_names, how.digest)})))
    return KnownKeys(1, keys, np.arange(len(keys), dtype=np.uint64))


# ---------------------------------------------------------------- fates


def test_a_row_is_fresh_unchanged_or_refreshed_by_what_the_table_has(how: Preparation) -> None:
    there = known(rows(("1", "一", 1), ("2", "二", 2), ("3", "三", 3), ("9", "九", 9)), how)
    block = rows(("1", "一", 1), ("2", "二", 0), ("3", "改", 3), ("4", "一", 1))
    found = prepare(block, how, there)
    assert found.schema == prepared([YEAR], True, pa.uint16())
    assert found["fate"].to_pylist() == [UNCHANGED, REFRESHED, FRESH, FRESH]
    keys = found["row_key"].to_pylist()
    assert keys == row_keys(block, ["year"], "digest").to_pylist()
    known_at = found["known_at"].to_pylist()
    assert bytes(there.keys[known_at[0] : known_at[0] + 1]) == keys[0]
    length = DOC_BYTES + TEXT_BYTES
    assert bytes(there.keys[known_at[1] : known_at[1] + 1])[:length] == keys[1][:length]
    assert known_at[2:] == [-1, -1]


def test_another_encoder_s_digest_makes_every_row_fresh(how: Preparation) -> None:
    block = rows(("1", "一", 1))
    other = Preparation(kept=how.kept, store_text=True, spec=how.spec, digest="other")
    assert prepare(block, other, known(block, how))["fate"].to_pylist() == [FRESH]


def test_the_same_row_again_is_repeated_and_only_the_first_counts(how: Preparation) -> None:
    block = rows(("1", "一", 1), ("1", "一", 1), ("1", "二", 1), ("1", "一", 2), ("1", "一", 1))
    fates = [FRESH, REPEATED, FRESH, FRESH, REPEATED]
    assert prepare(block, how, NONE)["fate"].to_pylist() == fates
    again = prepare(block, how, known(block.slice(0, 1), how))
    assert again["fate"].to_pylist() == [UNCHANGED, REPEATED, FRESH, REFRESHED, REPEATED]
    assert again["known_at"].to_pylist() == [0, -1, -1, 0, -1]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("1", None), "the text is null"),
        (("1", ""), "the text is empty"),
        (("1", " \t\r\n"), "the text is blank"),
        (("1", "\u3000\u2003\u0085"), "the text is blank"),
        ((None, "一"), "the id is missing"),
        (("", "一"), "the id is missing"),
        (("1", "一", 1, "invalid UTF-8"), "invalid UTF-8"),
        ((None, None, None, "not a line of JSON"), "not a line of JSON"),
    ],
)
def test_what_can_t_be_embedded_is_rejected_with_its_reason(
    how: Preparation, row: tuple[Any, ...], reason: str
) -> None:
    block = rows(("a", "甲"), row, row, ("b", "乙"))
    found = prepare(block, how, known(block, how)).to_pylist()
    assert [r["fate"] for r in found] == [UNCHANGED, REJECTED, REJECTED, UNCHANGED]
    assert [r["reason"] for r in found] == [None, reason, reason, None]
    assert [r["known_at"] == -1 for r in found] == [False, True, True, False]
    assert sound_rows(block)["doc_id"].to_pylist() == ["a", "b"]


def test_an_id_may_be_blank_and_a_text_may_be_a_single_sign(how: Preparation) -> None:
    found = prepare(rows((" ", "."), ("\u200b", "\u200b"), ("0", "\x00")), how, NONE)
    assert found["fate"].to_pylist() == [FRESH] * 3


# ---------------------------------------------------------------- tokens and texts


def test_only_fresh_rows_carry_token_ids(how: Preparation) -> None:
    there = known(rows(("1", "一", 1), ("2", "二", 2)), how)
    block = rows(
        ("1", "一", 1), ("2", "二", 0), ("3", "三四"), ("4", ""), ("3", "三四"), ("5", "一" * 99)
    )
    found = prepare(block, how, there).to_pylist()
    tokens = TextTokenizer(how.spec.folder, 16)(["三四", "一" * 99], "结果: ")
    expected = [tokens.values[a:b].tolist() for a, b in zip(tokens.offsets, tokens.offsets[1:])]  # noqa: B905
    assert [row["token_ids"] for row in found] == [[], [], expected[0], [], [], expected[1]]
    assert [row["n_tokens"] for row in found] == [0, 0, len(expected[0]), 0, 0, 16]
    assert [row["truncated"] for row in found] == [False] * 5 + [True]


def test_the_prefix_is_the_settings_own(how: Preparation, tiny_encoder: Path) -> None:
    plain = find_encoder(EncoderSettings(path=str(tiny_encoder), max_tokens=16, prefix="none"))
    other = Preparation(kept=how.kept, store_text=True, spec=plain, digest="digest")
    with_prefix, without = (
        prepare(rows(("1", "一")), h, NONE)["n_tokens"][0] for h in (how, other)
    )
    assert with_prefix.as_py() > without.as_py() == 3


def test_a_text_travels_on_only_if_it_is_to_be_stored(how: Preparation) -> None:
    there = known(rows(("1", "一", 1), ("2", "二", 2)), how)
    block = rows(("1", "一", 1), ("2", "二", 0), ("3", "三"), ("4", " "), ("3", "三"))
    assert prepare(block, how, there)["text"].to_pylist() == [None, None, "三", None, None]
    without = Preparation(kept=how.kept, store_text=False, spec=how.spec, digest="digest")
    assert prepare(block, without, there).schema == prepared([YEAR], False, pa.uint16())


def test_rows_keep_their_order_their_place_and_their_costs(how: Preparation) -> None:
    block = rows(*[(str(i), "一" * (i % 5), i) for i in range(40)])
    split = pa.concat_tables([block.slice(0, 3), block.slice(3, 0), block.slice(3)])
    whole = prepare(block, how, NONE)
    assert prepare(split, how, NONE).to_pylist() == whole.to_pylist()
    for name in ("shard", "row", "doc_id", "year", "shard_bytes", "read_seconds"):
        assert whole[name].to_pylist() == block[name].to_pylist()
    timed = with_time(whole, 20.0)
    assert timed.schema == whole.schema
    assert sum(timed["read_seconds"].to_pylist()) == pytest.approx(40 * 0.5 + 20)


def test_an_empty_block_stays_empty(how: Preparation) -> None:
    there = known(rows(("1", "一", 1)), how)
    for block in (rows(), rows(("1", "一", 1)).slice(1), source([YEAR]).empty_table()):
        found = prepare(block, how, there)
        assert found.schema == prepared([YEAR], True, pa.uint16())
        assert len(with_time(found, 1.0)) == len(sound_rows(block)) == 0


def test_a_block_of_rejects_only_is_prepared_too(how: Preparation) -> None:
    found = prepare(rows((None, None), ("1", "")), how, NONE)
    assert found["fate"].to_pylist() == [REJECTED, REJECTED]
    assert found["token_ids"].to_pylist() == [[], []]


# ---------------------------------------------------------------- known keys

# Few different bytes, zeros among them, so that prefixes, repeats and trailing zeros are common.
some_keys = st.lists(
    st.tuples(st.sampled_from([bytes(7), b"\x00" * 6 + b"\x01", b"\xff" * 7]),
              st.sampled_from([bytes(5), b"\x01\x00\x00\x00\x00", b"\xff" * 5]),
              st.sampled_from([bytes(4), b"\x00\x00\x00\x01", b"\xff" * 4])).map(b"".join),
    max_size=12,
)  # fmt: skip


@settings(deadline=None)
@given(some_keys, some_keys, st.sampled_from([DOC_BYTES, DOC_BYTES + TEXT_BYTES, KEY_BYTES]))
def test_find_gives_a_key_with_the_same_prefix_or_minus_one(
    there: list[bytes], wanted: list[bytes], prefix: int
) -> None:
    there = sorted(there)
    table = KnownKeys(1, np.array(there, "S16"), np.arange(len(there), dtype=np.uint64))
    asked = np.array(wanted, "S16")
    found = table.find(asked, prefix)
    assert found.dtype == np.int64
    assert len(found) == len(wanted)
    assert asked.tolist() == np.array(wanted, "S16").tolist(), "the keys asked for were changed"
    for key, at in zip(wanted, found.tolist(), strict=True):
        matching = [i for i, other in enumerate(there) if other[:prefix] == key[:prefix]]
        assert at == (matching[0] if matching else -1)
