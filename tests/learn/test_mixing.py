"""Batches as functions of seed and step: which rows, with which negatives, labels and prefixes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from stella_ray.errors import SettingsError
from stella_ray.learn.contrastive import cosent, cosines, info_nce
from stella_ray.learn.examples import open_examples, text_key
from stella_ray.learn.mixing import Batch, ExampleStream, Mixture, batch_loss
from stella_ray.learn.sources import ExampleSource

SHORT, LONG = "短", "长" * 65


def stream(tmp_path: Path, name: str, count: int, seed: int = 0, **settings: Any) -> ExampleStream:
    """A source of `count` rows: row i is (q<i>, p<i>) with i % 4 negatives, label i % 3."""
    kind = settings.setdefault("kind", "pairs")
    path = tmp_path / f"{name}.jsonl"
    rows = [
        {"query": f"q{i}", "passage": f"p{i}", "negatives": [f"n{i}.{k}" for k in range(i % 4)],
         "label": i % 3}
        for i in range(count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    negatives = "negatives" if kind == "pairs" else None
    settings = {"batch_size": 8, "negatives_column": negatives, **settings}
    source = ExampleSource(name=name, files=[str(path)], **settings)
    return ExampleStream(source, open_examples(source, tmp_path / "cache"), seed, "查: ", "果: ")


def same(a: Batch, b: Batch) -> bool:
    return all(
        np.array_equal(x, y, equal_nan=name == "labels") if isinstance(x, np.ndarray) else x == y
        for name in (field.name for field in dataclasses.fields(Batch))
        for x, y in [(getattr(a, name), getattr(b, name))]
    )


def test_an_epoch_has_each_row_once_and_the_next_another_order(tmp_path: Path) -> None:
    one = stream(tmp_path, "a", 24)
    epochs = [np.concatenate([one.rows(epoch, step) for step in range(3)]) for epoch in range(2)]
    assert [sorted(rows) for rows in epochs] == [list(range(24))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    walked = [batch.rows.tolist() for batch in itertools.islice(one.batches(), 6)]
    assert list(itertools.chain(*walked)) == np.concatenate(epochs).tolist()


@pytest.mark.parametrize(("rule", "sizes"), [("drop", [8, 8]), ("keep", [8, 8, 4])])
def test_a_short_last_batch_is_dropped_or_kept_by_the_rule(
    rule: str, sizes: list[int], tmp_path: Path
) -> None:
    one = stream(tmp_path, "a", 20, last_batch=rule)
    assert [len(one.rows(0, step)) for step in range(one.steps_per_epoch)] == sizes


def test_what_is_dropped_in_one_epoch_comes_in_another(tmp_path: Path) -> None:
    one = stream(tmp_path, "a", 15)
    seen = set(np.concatenate([one.rows(epoch, 0) for epoch in range(20)]).tolist())
    assert seen == set(range(15))


def test_workers_cut_the_same_batch_into_parts_that_do_not_meet(tmp_path: Path) -> None:
    one = stream(tmp_path, "a", 40, negative_share=0.5, batch_size=20)
    whole = one.batch(1, 1)
    for workers in (2, 3, 7):
        parts = [one.batch(1, 1, worker, workers) for worker in range(workers)]
        assert list(itertools.chain(*(part.queries for part in parts))) == whole.queries
        assert {len(part.rows) for part in parts} <= {20 // workers, -(-20 // workers)}
        assert {part.rows_of_all for part in parts} == {20}
        negatives = [p for part in parts for p in part.passages[len(part.rows) :]]
        assert negatives == whole.passages[20:]


def test_a_resume_at_any_step_sees_what_an_unbroken_run_sees(tmp_path: Path) -> None:
    def mixture() -> Mixture:
        streams = [
            stream(tmp_path, "a", 20, weight=2, negative_share=0.5),
            stream(tmp_path, "b", 11, kind="scored", batch_size=3),
        ]
        return Mixture(streams, seed=5)

    unbroken = mixture()
    all_of_it = [unbroken.batch(step) for step in range(30)]
    for step in (29, 0, 13, 7):
        assert same(mixture().batch(step), all_of_it[step])


def test_another_process_draws_the_same(tmp_path: Path) -> None:
    one = stream(tmp_path, "a", 40, negative_share=0.5)
    code = (
        "import pickle, sys\n"
        "batch = pickle.load(sys.stdin.buffer).batch(3, 2)\n"
        "print(batch.rows.tolist(), batch.passages)"
    )
    import pickle

    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(one), capture_output=True, check=True
    )
    here = one.batch(3, 2)
    assert done.stdout.decode().strip() == f"{here.rows.tolist()} {here.passages}"


def test_each_round_visits_each_source_as_often_as_its_weight_in_a_fresh_order(
    tmp_path: Path,
) -> None:
    streams = [stream(tmp_path, name, 16, weight=w) for name, w in (("a", 3), ("b", 1), ("c", 2))]
    mixture = Mixture(streams, seed=1)
    assert mixture.steps_per_round == 6
    rounds = [tuple(mixture.visit(6 * r + i)[0] for i in range(6)) for r in range(20)]
    assert all(Counter(order) == {0: 3, 1: 1, 2: 2} for order in rounds)
    assert len(set(rounds)) > 10


def test_a_source_that_ends_begins_again_while_the_others_go_on(tmp_path: Path) -> None:
    mixture = Mixture([stream(tmp_path, "a", 16), stream(tmp_path, "b", 40, weight=2)], seed=1)
    visits = [mixture.visit(step) for step in range(30)]
    for source, steps, visited in ((0, 2, 10), (1, 5, 20)):
        mine = [visit[1:] for visit in visits if visit[0] == source]
        assert mine == [divmod(i, steps) for i in range(visited)]


def test_seeds_sources_and_epochs_are_shuffled_apart(tmp_path: Path) -> None:
    orders = {
        tuple(stream(tmp_path, name, 64, seed=seed, batch_size=64).rows(epoch, 0).tolist())
        for name, seed, epoch in itertools.product("ab", (0, 1), (0, 1))
    }
    assert len(orders) == 8


def test_a_fifth_of_the_rows_with_negatives_gives_one_of_them_drawn_anew_each_epoch(
    tmp_path: Path,
) -> None:
    one = stream(tmp_path, "a", 4_000, batch_size=4_000)
    batches = [one.batch(epoch, 0) for epoch in range(2)]
    givers = [set(batch.rows[batch.owner[4_000:]].tolist()) for batch in batches]
    assert len(givers[0] & givers[1]) < 200  # 120 of 3,000 give in both by chance
    for batch in batches:
        owners = batch.rows[batch.owner[4_000:]]
        assert 500 < len(owners) < 700  # 3,000 rows have one or more
        assert len(set(owners)) == len(owners)
        assert set(owners % 4) == {1, 2, 3}
        for owner, text in zip(owners, batch.passages[4_000:], strict=True):
            assert text.startswith(f"n{owner}.")
        which = Counter(
            text[-1]
            for owner, text in zip(owners, batch.passages[4_000:], strict=True)
            if owner % 4 == 3
        )
        assert min(which[k] for k in "012") > 30
    assert set(batches[0].passages[4_000:]) != set(batches[1].passages[4_000:])


def test_rows_without_negatives_are_normal_and_a_share_of_one_takes_all(tmp_path: Path) -> None:
    one = stream(tmp_path, "a", 8, negative_share=1.0, negatives_per_row=2)
    batch = one.batch(0, 0)
    assert batch.owner[:8].tolist() == list(range(8))
    brought = Counter(batch.owner[8:].tolist())
    assert all(brought[i] == min(2, row % 4) for i, row in enumerate(batch.rows))
    assert len(set(batch.passages)) == len(batch.passages)
    none = stream(tmp_path, "a", 8, negative_share=0.0).batch(0, 0)
    assert len(none.passages) == 8


@pytest.mark.parametrize(
    ("rule", "kind", "prefixed"),
    [
        ("by_length", "pairs", {"short-long"}),
        ("auto", "pairs", {"short-long"}),
        ("auto", "scored", set()),
        ("by_length", "scored", {"short-long"}),
        ("never", "pairs", set()),
        ("always", "pairs", {"short-long", "short-short", "long-long", "edge"}),
    ],
)
def test_prefixes_stand_where_the_rule_says_and_negatives_go_with_their_row(
    rule: str, kind: str, prefixed: set[str], tmp_path: Path
) -> None:
    rows = {
        "short-long": (SHORT * 31, LONG),
        "short-short": (SHORT, LONG[:64]),
        "long-long": (SHORT * 32, LONG),
        "edge": (SHORT * 32, LONG[:64]),
    }
    path = tmp_path / "x.jsonl"
    lines = [{"query": q, "passage": p, "negatives": ["短"], "label": 1} for q, p in rows.values()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    more = {"negatives_column": "negatives", "negative_share": 1.0} if kind == "pairs" else {}
    source = ExampleSource(
        name="x", kind=kind, files=[str(path)], batch_size=4, prefix=rule, **more
    )
    batch = ExampleStream(source, open_examples(source, tmp_path), 0, "查: ", "果: ").batch(0, 0)
    names = [list(rows)[row] for row in batch.rows]
    for i, text in enumerate(batch.queries):
        assert text.startswith("查: ") == (names[i] in prefixed)
    for owner, text in zip(batch.owner, batch.passages, strict=True):
        assert text.startswith("果: ") == (names[owner] in prefixed)
    assert batch.prefixed == len(prefixed)
    assert batch.query_keys.tolist() == [text_key(rows[name][0]) for name in names]


def test_a_batch_that_can_not_be_filled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"batch_size 8 is above its 5 rows.*last_batch keep"):
        stream(tmp_path, "a", 5)
    assert stream(tmp_path, "a", 5, last_batch="keep").steps_per_epoch == 1


def test_more_workers_than_rows_leave_some_without(tmp_path: Path) -> None:
    one = stream(tmp_path, "a", 2, last_batch="keep")
    parts = [one.batch(0, 0, worker, 5) for worker in range(5)]
    assert sorted(len(part.rows) for part in parts) == [0, 0, 0, 1, 1]


def test_sources_need_names_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="called a, a; expected"):
        Mixture([stream(tmp_path, "a", 8), stream(tmp_path, "a", 8)], 0)
    with pytest.raises(SettingsError, match="called nothing"):
        Mixture([], 0)


def test_a_resumed_run_can_tell_other_data_settings_or_seeds(tmp_path: Path) -> None:
    def digest(count: int = 8, seed: int = 0, **settings: Any) -> str:
        return Mixture([stream(tmp_path, "a", count, seed, **settings)], seed).digest()

    assert digest() == digest()
    others = {digest(count=9), digest(seed=1), digest(batch_size=4), digest(weight=2)}
    assert len(others - {digest()}) == 4


def vectors(count: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, 6, generator=random, dtype=torch.float64), dim=-1)


def test_each_type_has_its_own_loss_scale_and_factor(tmp_path: Path) -> None:
    pairs = stream(tmp_path, "a", 8, negative_share=1.0, loss_factor=2.0, scale=10.0).batch(0, 0)
    q, d = vectors(8, 0), vectors(len(pairs.passages), 1)
    wanted = 2 * info_nce(q, d, torch.arange(8), scale=10).mean()
    torch.testing.assert_close(batch_loss(pairs, q, d), wanted)
    scored = stream(tmp_path, "b", 8, kind="scored", loss_factor=0.04).batch(0, 0)
    wanted = 0.04 * cosent(cosines(q, vectors(8, 2)), torch.from_numpy(scored.labels))
    torch.testing.assert_close(batch_loss(scored, q, vectors(8, 2)), wanted)


def test_a_passage_known_to_answer_another_query_is_no_negative_of_it(tmp_path: Path) -> None:
    """Two rows ask the same, a third answers with the first's passage: all known from the file."""
    path = tmp_path / "x.jsonl"
    rows = [("问", "甲"), ("问", "乙"), ("别", "甲"), ("又", "丙")]
    path.write_text("".join(json.dumps({"query": q, "passage": p}) + "\n" for q, p in rows))
    source = ExampleSource(name="x", kind="pairs", files=[str(path)], batch_size=4)
    batch = ExampleStream(source, open_examples(source, tmp_path), 0).batch(0, 0)
    q, d = vectors(4, 0), vectors(4, 1)
    texts = [rows[row] for row in batch.rows]
    wanted = 0.0
    for i, (query, own) in enumerate(texts):
        known = {p for asked, p in rows if asked == query}
        counted, met = [i], {own}
        for j, (_, passage) in enumerate(texts):
            if passage not in known | met:
                counted.append(j)
                met.add(passage)
        logits = torch.stack([30 * q[i] @ d[j] for j in counted])
        wanted += float(logits.logsumexp(0) - logits[0]) / 4
    assert batch_loss(batch, q, d).item() == pytest.approx(wanted)
