"""The losses against brute force in float64, pair by pair."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stella_ray.learn.contrastive import (
    FalseNegatives,
    cosent,
    cosines,
    info_nce,
    ordered_pairs,
    same_texts,
    too_similar,
)


def unit(*shape: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=random, dtype=torch.float64), dim=-1)


def pool(rows: int, negatives: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, passages with `negatives[i]` of row i, and the positives' places, shuffled."""
    total = rows + sum(negatives)
    shuffled = torch.randperm(total, generator=torch.Generator().manual_seed(5))
    return unit(rows, 6), unit(total, 6, seed=1), shuffled[:rows]


def slow_info_nce(q: Tensor, d: Tensor, own: list[int], scale: float, left_out: Tensor) -> Tensor:
    losses = []
    for i in range(len(q)):
        total = 0.0
        for j in range(len(d)):
            if j == own[i] or not left_out[i, j]:
                total += math.exp(scale * float(q[i] @ d[j]))
        losses.append(math.log(total) - scale * float(q[i] @ d[own[i]]))
    return torch.tensor(losses, dtype=torch.float64)


def slow_cosent(s: Tensor, y: Tensor, scale: float) -> Tensor:
    total = torch.ones((), dtype=torch.float64)
    for i in range(len(s)):
        for j in range(len(s)):
            if y[i] > y[j]:
                total = total + torch.exp(scale * (s[j] - s[i]))
    return total.log()


@pytest.mark.parametrize("negatives", [[0, 0, 0, 0], [1, 0, 3, 0], [2, 2, 2, 2]])
def test_info_nce_is_brute_force_for_any_number_of_hard_negatives(negatives: list[int]) -> None:
    q, d, own = pool(4, negatives)
    none = torch.zeros(4, len(d), dtype=torch.bool)
    wanted = slow_info_nce(q, d, own.tolist(), 30, none)
    torch.testing.assert_close(info_nce(q, d, own), wanted)
    random = torch.rand(none.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    ignored = FalseNegatives(random, torch.zeros(4, 4, dtype=torch.bool))
    wanted = slow_info_nce(q, d, own.tolist(), 5, random)
    torch.testing.assert_close(info_nce(q, d, own, scale=5, ignored=ignored), wanted)


def test_parts_of_the_queries_against_the_whole_pool_make_the_whole_loss() -> None:
    """What workers do: each has its own queries, all have all passages."""
    q, d, own = pool(4, [1, 0, 2, 0])
    parts = [info_nce(q[rows], d, own[rows]) for rows in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(torch.cat(parts), info_nce(q, d, own))


def test_symmetric_adds_each_passages_search_for_its_query() -> None:
    q, d, own = pool(4, [1, 0, 2, 0])
    back = torch.rand(4, 4, generator=torch.Generator().manual_seed(2)) < 0.3
    ignored = FalseNegatives(torch.zeros(4, len(d), dtype=torch.bool), back)
    there = slow_info_nce(q, d, own.tolist(), 30, ignored.passages_BN)
    and_back = slow_info_nce(d[own], q, [0, 1, 2, 3], 30, back)
    found = info_nce(q, d, own, ignored=ignored, symmetric=True)
    torch.testing.assert_close(found, (there + and_back) / 2)


def test_one_row_without_negatives_has_no_loss_and_no_gradient() -> None:
    q, d = unit(1, 6).requires_grad_(), unit(1, 6, seed=1)
    loss = info_nce(q, d, torch.tensor([0]))
    loss.sum().backward()
    assert loss.item() == 0
    assert q.grad is not None
    assert torch.equal(q.grad, torch.zeros_like(q))


def test_gradients_of_info_nce_are_those_of_finite_differences() -> None:
    q, d, own = pool(3, [1, 0, 1])
    ignored = too_similar(q @ d.T, own, 0.1)
    assert ignored.passages_BN.any()

    def loss(q: Tensor, d: Tensor) -> Tensor:
        return info_nce(q, d, own, scale=7, ignored=ignored, symmetric=True)

    assert torch.autograd.gradcheck(loss, (q.requires_grad_(), d.requires_grad_()))


def test_a_left_out_passage_gets_no_gradient() -> None:
    q, d, own = pool(2, [1, 0])
    d.requires_grad_()
    other = ({0, 1, 2} - set(own.tolist())).pop()
    left_out = torch.zeros(2, 3, dtype=torch.bool)
    left_out[:, other] = True
    info_nce(
        q, d, own, ignored=FalseNegatives(left_out, torch.zeros(2, 2, dtype=torch.bool))
    ).sum().backward()
    assert d.grad is not None
    assert not d.grad[other].any()
    assert d.grad[own].any(1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_are_float32_whatever_comes_in_and_under_autocast(dtype: torch.dtype) -> None:
    q, d, own = pool(4, [1, 1, 1, 1])
    q, d = q.to(dtype), d.to(dtype)
    wanted = info_nce(q.double(), d.double(), own)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = info_nce(q, d, own)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert cosent(q[:, 0], torch.arange(4)).dtype == torch.float32


def test_false_negatives_are_told_by_text_and_the_own_positive_stays() -> None:
    """Rows: (q0, a), (q1, a), (q0, b), (q3, c); pool: a a b c | x q3 x b."""
    text = {name: i for i, name in enumerate(["q0", "q1", "q3", "a", "b", "c", "x", "unseen"])}
    queries = ["q0", "q1", "q0", "q3"]
    known = [["a", "b"], ["a", "unseen"], ["b", "a"], ["c", "c"]]
    passages = ["a", "a", "b", "c", "x", "q3", "x", "b"]
    found = same_texts(
        torch.tensor([text[q] for q in queries]),
        torch.tensor([[text[p] for p in row] for row in known]),
        torch.tensor([text[p] for p in passages]),
        torch.arange(4),
    )
    for i, query in enumerate(queries):
        for j, passage in enumerate(passages):
            told = passage in known[i] or passage == query or passage in passages[:j]
            assert found.passages_BN[i, j] == (told and i != j), (i, j)
        for k in range(4):
            assert found.queries_BB[i, k] == (k != i and passages[i] in known[k]), (i, k)


def test_a_repeated_text_counts_once_so_that_popular_negatives_weigh_no_more() -> None:
    q, d, own = pool(2, [1, 0])
    negative = ({0, 1, 2} - set(own.tolist())).pop()
    once = info_nce(q, d, own)
    keys = torch.tensor([7, 8, 9, 9, 9])
    keys[[*own.tolist(), negative]] = torch.tensor([7, 8, 9])
    thrice = torch.cat([d, d[[negative, negative]]])
    ignored = same_texts(torch.tensor([1, 2]), torch.tensor([[7], [8]]), keys, own)
    torch.testing.assert_close(info_nce(q, thrice, own, ignored=ignored), once)


@pytest.mark.parametrize("kind", ["absolute", "relative"])
@pytest.mark.parametrize("margin", [0.0, 0.1, -0.1])
def test_a_guides_margin_leaves_out_what_comes_too_near_the_positive(
    kind: str, margin: float
) -> None:
    guide = torch.rand(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    guide[1] -= 1  # a negative cosine of the own positive
    own = torch.tensor([2, 0, 5, 3])
    found = too_similar(guide, own, margin, kind)  # type: ignore[arg-type]
    for i in range(4):
        best = guide[i, own[i]]
        ceiling = best - (margin if kind == "absolute" else margin * abs(best))
        for j in range(7):
            assert found.passages_BN[i, j] == (j != own[i] and guide[i, j] > ceiling)
        for k in range(4):
            assert found.queries_BB[i, k] == (k != i and guide[k, own[i]] > ceiling)


def test_what_either_mask_says_is_left_out() -> None:
    a = FalseNegatives(torch.tensor([[True, False]]), torch.tensor([[False]]))
    b = FalseNegatives(torch.tensor([[False, False]]), torch.tensor([[True]]))
    assert (a | b).passages_BN.tolist() == [[True, False]]
    assert (a | b).queries_BB.tolist() == [[True]]


@pytest.mark.parametrize("levels", [2, 3, 50])
def test_cosent_is_the_quadratic_form_ties_and_all(levels: int) -> None:
    random = torch.Generator().manual_seed(levels)
    s = torch.rand(40, generator=random, dtype=torch.float64) * 2 - 1
    y = torch.randint(levels, (40,), generator=random).double() / 10
    s.requires_grad_()
    fast, slow = cosent(s, y), slow_cosent(s, y, 20)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(
        torch.autograd.grad(fast, s)[0], torch.autograd.grad(slow, s)[0], rtol=1e-6, atol=1e-9
    )
    assert ordered_pairs(y) == sum(int(a > b) for a in y for b in y)


def test_gradients_of_cosent_are_those_of_finite_differences() -> None:
    a, b = unit(6, 5).requires_grad_(), unit(6, 5, seed=1).requires_grad_()
    y = torch.tensor([0, 2, 1, 1, 0, 2])
    assert torch.autograd.gradcheck(lambda a, b: cosent(cosines(a, b), y), (a, b))


@pytest.mark.parametrize("labels", [[1, 1, 1], [0.5], []])
def test_a_batch_without_an_ordered_pair_has_no_loss_and_no_gradient(labels: list[float]) -> None:
    s = torch.linspace(-1, 1, len(labels)).requires_grad_()
    loss = cosent(s, torch.tensor(labels))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert s.grad is not None
    assert not s.grad.any()
    assert ordered_pairs(torch.tensor(labels)) == 0


def test_cosent_holds_at_the_ends_of_cosines_in_float32() -> None:
    s = torch.tensor([1.0, -1.0] * 512)
    y = torch.tensor([0, 1] * 512)  # as wrong as can be: each of 2^18 pairs costs 40 nats
    s.requires_grad_()
    loss = cosent(s, y)
    torch.testing.assert_close(loss, torch.tensor(40 + 18 * math.log(2)))
    torch.testing.assert_close(
        torch.autograd.grad(loss, s)[0], torch.tensor([20 / 512, -20 / 512] * 512)
    )
    assert cosent(-s, y).item() < 1e-6
    assert torch.autograd.grad(cosent(-s, y), s)[0].abs().max() < 1e-6
