"""How much each weight matters to retrieval: the diagonal of the Fisher information, and its file.

Legend: P rows of a pool, D numbers of a vector.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stella_ray.errors import ModelError, SettingsError
from stella_ray.learn.contrastive import INFO_NCE_SCALE, products
from stella_ray.learn.folders import read_tensors, write_tensors
from stella_ray.learn.recipe import Normalise
from stella_ray.learn.shuffle import key_of


@dataclass(frozen=True, kw_only=True)
class FisherNotes:
    """What the numbers depend on: of another pool or scale they are other numbers."""

    weights: str
    """Digest of the model's weights."""
    data: str
    """Digest of the examples."""
    pool: int
    """Candidates that each query was held against."""
    rows: int = 0
    """Rows that were averaged over."""
    scale: float = INFO_NCE_SCALE
    """Of the softmax."""
    kind: Literal["empirical", "true"] = "true"
    """Which passage counts as the answer: empirical: the row's own one; true: one drawn from the
    softmax, which doesn't shrink to nothing where the model is sure of its answers."""
    seed: int = 0
    """Of what is drawn."""


def diagonal_fisher(
    model: torch.nn.Module,
    vectors: Callable[[list[str]], Tensor],
    pools: Iterable[tuple[list[str], list[str]]],
    notes: FisherNotes,
    first: int = 0,
) -> tuple[dict[str, Tensor], FisherNotes]:
    """The mean over rows of the squared gradient of each row's own log-probability.

    F_k = E_i [(d log p(y | q_i) / d theta_k)^2], p(j | q_i) = softmax_j(s q_i.d_j) over the pool
    (EWC, arXiv 1612.00796, with the softmax of retrieval). Squared row by row: the square of a
    batch's mean gradient is too small by about the batch, and points elsewhere.

    1. Encode a pool with its graph. 2. For each row choose y. 3. One backward pass a row; square
    and add. 4. Divide by the rows.

    Args:
        model: in evaluation mode; its parameters that require a gradient are measured.
        vectors: texts, with their prefixes, to unit vectors [P, D] through `model`.
        pools: queries and their passages, `notes.pool` of each; all are each query's candidates.
        notes: how; `rows` is filled in.
        first: the number of the first of these pools, where they are a part of all: what is drawn
            for a pool depends on its number, not on who draws.

    Returns:
        By the parameters' names, float32 tensors of their shapes; and the notes.

    Raises:
        SettingsError: no pool, or one of another size.
    """
    assert not model.training, "dropout would be measured too; this is a bug"
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    rows = 0
    for number, (queries, passages) in enumerate(pools, first):
        if not len(queries) == len(passages) == notes.pool:
            raise SettingsError(
                f"a pool of {len(queries)} queries and {len(passages)} passages; expected"
                f" {notes.pool} of each, since the Fisher information depends on it"
            )
        logits_PP = notes.scale * products(vectors(queries), vectors(passages))
        chosen_P = torch.arange(notes.pool)
        if notes.kind == "true":
            random = torch.Generator().manual_seed(key_of(notes.seed, number) >> 1)
            odds_PP = logits_PP.detach().softmax(1).cpu()
            chosen_P = torch.multinomial(odds_PP, 1, generator=random)[:, 0]
        log_odds_PP = logits_PP.log_softmax(1)
        for i, chosen in enumerate(chosen_P.tolist()):
            gradients = torch.autograd.grad(
                log_odds_PP[i, chosen],
                list(parameters.values()),
                retain_graph=True,
                allow_unused=True,
            )
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient.float().square()
        rows += notes.pool
    if not rows:
        raise SettingsError("no rows to measure the Fisher information on; expected a pool or more")
    return {name: sums / rows for name, sums in total.items()}, dataclasses.replace(
        notes, rows=rows
    )


def save_fisher(path: Path, fisher: Mapping[str, Tensor], notes: FisherNotes) -> None:
    """Write a safetensors file; the notes stand in its metadata."""
    told = {"fisher": json.dumps(dataclasses.asdict(notes))}
    write_tensors(path, {name: one.cpu().contiguous() for name, one in fisher.items()}, told)


def load_fisher(
    path: Path, shapes: Mapping[str, torch.Size]
) -> tuple[dict[str, Tensor], FisherNotes]:
    """Read what `save_fisher` wrote, for a model of these parameters.

    Raises:
        ModelError: not such a file, or of a model with other parameters.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; expected the Fisher information of the base model")
    fisher, metadata = read_tensors(path)
    if "fisher" not in metadata:
        raise ModelError(f"{path}: holds no Fisher information; expected a file made for that")
    for name in sorted(set(fisher) ^ set(shapes)):
        here, there = ("file", "model") if name in fisher else ("model", "file")
        raise ModelError(
            f"{path}: {name} is in the {here} alone, not in the {there}; expected the Fisher"
            " information of this model, so measure it again"
        )
    for name, one in fisher.items():
        if one.shape != shapes[name]:
            raise ModelError(
                f"{path}: {name} is {list(one.shape)}, in the model {list(shapes[name])}; measure"
                " it again on this model (extend positions first)"
            )
    return fisher, FisherNotes(**json.loads(metadata["fisher"]))


def check_fisher(path: Path, weights: str) -> None:
    """Check that a file is the Fisher information of the model with these weights.

    Raises:
        ModelError: it isn't; or no such file.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; expected what jobs/fisher.py wrote for this model")
    told = json.loads(read_tensors(path)[1].get("fisher", "{}"))
    if told.get("weights") != weights:
        raise ModelError(
            f"{path}: of a model with weights {told.get('weights')}, not {weights}; measure it on"
            " this base model (jobs/fisher.py)"
        )


def scaled(
    fisher: Mapping[str, Tensor], normalise: Normalise, clip_quantile: float
) -> dict[str, Tensor]:
    """Bring importances to a scale at which one strength serves any model and pool.

    Clipped first, so that the few greatest don't set the mean: an explicit step is only stable
    while rate x strength x F < 2.

    Args:
        fisher: importances.
        normalise: to a mean of 1 over all numbers, over each tensor's, or not.
        clip_quantile: greater ones than at this quantile of all are set to it; 1 clips none.
    """
    out = {name: one.clone() for name, one in fisher.items()}
    if clip_quantile < 1:
        # torch.quantile takes no more than 2^24 numbers.
        numbers = np.concatenate([one.cpu().numpy().ravel() for one in out.values()])
        at = min(len(numbers) - 1, int(clip_quantile * len(numbers)))
        ceiling = float(np.partition(numbers, at)[at])
        out = {name: one.clamp(max=ceiling) for name, one in out.items()}
    if normalise == "per_tensor_mean":
        return {name: one / (one.mean() or 1) for name, one in out.items()}
    if normalise == "global_mean":
        total = sum(float(one.sum(dtype=torch.float64)) for one in out.values())
        mean = total / sum(one.numel() for one in out.values())
        return {name: one / (mean or 1) for name, one in out.items()}
    return out
