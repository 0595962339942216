"""The losses of the recipe, over vectors and cosines: nothing here knows the model.

Logits and log-sum-exp are float32 at least, whatever comes in and even under autocast: at a scale
of 30 bfloat16's error of a cosine, 0.004, would be 0.12 nats.

Legend: B queries, N passages of the pool, K known positives of a query, D numbers of a vector,
U distinct texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

INFO_NCE_SCALE = 30.0
"""Of stella's authors: a temperature of 0.033."""
COSENT_SCALE = 20.0
"""Of stella's authors, and the article's."""


@dataclass(frozen=True)
class FalseNegatives:
    """Which texts must not count as negatives; never a query's own positive.

    Attributes:
        passages_BN: passages that are none of query i's negatives, bool.
        queries_BB: (i, k): query k is no negative of query i's positive, bool; for `symmetric`.
    """

    passages_BN: Tensor
    queries_BB: Tensor

    def __or__(self, other: FalseNegatives) -> FalseNegatives:
        """What either of them says."""
        return FalseNegatives(
            self.passages_BN | other.passages_BN, self.queries_BB | other.queries_BB
        )


def info_nce(
    queries_BD: Tensor,
    passages_ND: Tensor,
    positive_B: Tensor,
    *,
    scale: float = INFO_NCE_SCALE,
    ignored: FalseNegatives | None = None,
    symmetric: bool = False,
) -> Tensor:
    """Cross-entropy of each query's own passage among a pool that all queries share.

    The pool is flat, so that a row may bring any number of hard negatives, or none: each counts
    for every query. L_i = -log(exp(s q_i.d_i) / sum over j not ignored of exp(s q_i.d_j)), InfoNCE
    (arXiv 1807.03748) with in-batch negatives.

    Args:
        queries_BD: unit vectors.
        passages_ND: unit vectors; positives and hard negatives in any order.
        positive_B: where in the pool each query's own passage stands, int64.
        scale: s, one over the temperature.
        ignored: pairs that are left out of the sum; see `same_texts` and `too_similar`.
        symmetric: also find each own passage's query among all queries, and take the mean of both.

    Returns:
        The loss of each query, [B], float32 or float64; of a batch it is their mean.
    """
    logits_BN = scale * products(queries_BD, passages_ND)
    loss_B = _cross_entropy(logits_BN, positive_B, ignored.passages_BN if ignored else None)
    if not symmetric:
        return loss_B
    back_BB = logits_BN[:, positive_B].T
    own_B = torch.arange(len(back_BB), device=back_BB.device)
    return (loss_B + _cross_entropy(back_BB, own_B, ignored.queries_BB if ignored else None)) / 2


def products(a_BD: Tensor, b_ND: Tensor) -> Tensor:
    """The inner product of each a with each b, [B, N], float32 or float64 even under autocast."""
    exact = torch.promote_types(torch.promote_types(a_BD.dtype, b_ND.dtype), torch.float32)
    with torch.autocast(a_BD.device.type, enabled=False):
        return a_BD.to(exact) @ b_ND.to(exact).T


def cosines(a_BD: Tensor, b_BD: Tensor) -> Tensor:
    """The inner product of each a with the b of its row, [B], in float32 or float64."""
    exact = torch.promote_types(torch.promote_types(a_BD.dtype, b_BD.dtype), torch.float32)
    return (a_BD.to(exact) * b_BD.to(exact)).sum(-1)


def _cross_entropy(logits_BN: Tensor, positive_B: Tensor, ignored_BN: Tensor | None) -> Tensor:
    own_B1 = positive_B[:, None]
    own = logits_BN.gather(1, own_B1)[:, 0]
    if ignored_BN is not None:
        left_out_BN = ignored_BN.scatter(1, own_B1, value=False)
        logits_BN = logits_BN.masked_fill(left_out_BN, -torch.inf)
    return logits_BN.logsumexp(1) - own


def same_texts(
    query_keys_B: Tensor, known_BK: Tensor, passage_keys_N: Tensor, positive_B: Tensor
) -> FalseNegatives:
    """Tell false negatives by their text: dropping their rows would lose data.

    Passage j is no negative of query i where its text is one of the query's known positives, or
    the query itself, or stands in the pool before j already (each text counts once).

    Args:
        query_keys_B: a hash of each query's text, int64.
        known_BK: hashes of all passages known to answer each query, its own one among them, int64;
            shorter rows are filled up with any of their own.
        passage_keys_N: a hash of each passage's text, int64.
        positive_B: where in the pool each query's own passage stands, int64.
    """
    texts_U, text_N = torch.unique(passage_keys_N, return_inverse=True)
    wanted_BK = torch.cat([known_BK, query_keys_B[:, None]], 1)
    at_BK = torch.searchsorted(texts_U, wanted_BK).clamp(max=len(texts_U) - 1)
    known_BU = torch.zeros(
        len(wanted_BK), len(texts_U), dtype=torch.int32, device=texts_U.device
    ).scatter_add(1, at_BK, (texts_U[at_BK] == wanted_BK).int())
    known_BN = known_BU.bool()[:, text_N]
    place_N = torch.arange(len(text_N), device=text_N.device)
    first_U = torch.full_like(texts_U, len(text_N)).scatter_reduce(0, text_N, place_N, "amin")
    repeated_N = first_U[text_N] != place_N
    own_B1 = positive_B[:, None]
    diagonal_BB = torch.eye(len(positive_B), dtype=torch.bool, device=positive_B.device)
    return FalseNegatives(
        passages_BN=(known_BN | repeated_N).scatter(1, own_B1, value=False),
        queries_BB=known_BN[:, positive_B].T & ~diagonal_BB,
    )


def too_similar(
    guide_BN: Tensor,
    positive_B: Tensor,
    margin: float = 0.0,
    kind: Literal["absolute", "relative"] = "absolute",
) -> FalseNegatives:
    """Tell false negatives by a guide's cosines (GISTEmbed, arXiv 2402.16829).

    Passage j is no negative of query i where guide_ij > guide_ii - m (absolute) or
    guide_ii - m |guide_ii| (relative; NV-Retriever's 95% is m = 0.05).

    Args:
        guide_BN: cosines by a model that is trusted to know.
        positive_B: where in the pool each query's own passage stands, int64.
        margin: m.
        kind: of the margin.
    """
    own_B1 = guide_BN.gather(1, positive_B[:, None])
    slack = margin if kind == "absolute" else margin * own_B1.abs()
    ceiling_B1 = own_B1 - slack
    back_BB = guide_BN[:, positive_B].T
    diagonal_BB = torch.eye(len(positive_B), dtype=torch.bool, device=positive_B.device)
    return FalseNegatives(
        passages_BN=(guide_BN > ceiling_B1).scatter(1, positive_B[:, None], value=False),
        queries_BB=(back_BB > ceiling_B1) & ~diagonal_BB,
    )


def cosent(cosines_B: Tensor, labels_B: Tensor, scale: float = COSENT_SCALE) -> Tensor:
    """CoSENT (kexue.fm/8847): pairs of a higher label should have the higher cosine.

    log(1 + sum over y_i > y_j of exp(s (cos_j - cos_i))), of all rows at once: it isn't a mean of
    parts, so workers must gather cosines and labels first. In O(B log B): rows sorted by label, the
    log-sum-exp of all rows below row i's label is a prefix's.

    Args:
        cosines_B: of the two texts of each row.
        labels_B: the higher, the more alike; only their order counts, equal ones make no pair.
        scale: s.

    Returns:
        One number, float32 or float64; 0 with a gradient of 0 where no two labels differ, which a
        caller can count by `ordered_pairs`.
    """
    exact = torch.promote_types(cosines_B.dtype, torch.float32)
    labels, order_B = labels_B.sort(stable=True)
    scaled_B = scale * cosines_B.to(exact)[order_B]
    below_B = torch.searchsorted(labels, labels)  # rows of a lower label
    above = below_B > 0
    prefix_B = scaled_B.logcumsumexp(0)
    terms = prefix_B[below_B[above] - 1] - scaled_B[above]
    return torch.cat([terms, terms.new_zeros(1)]).logsumexp(0)


def ordered_pairs(labels_B: Tensor) -> int:
    """How many pairs of rows CoSENT compares: those whose labels differ."""
    _, counts_U = labels_B.unique(return_counts=True)
    total = len(labels_B)
    return (total * total - int((counts_U * counts_U).sum())) // 2
