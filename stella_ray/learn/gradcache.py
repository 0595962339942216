"""The gradient of a loss over many rows, with the activations of few in memory (GradCache).

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
arXiv 2101.06983. Exact: each batch's second forward pass equals its first (see `dropout`).

Legend: M rows of this worker, D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

LossOf = Callable[[Tensor], Tensor]


def cached_backward(
    encode: Callable[[np.ndarray], Tensor],
    batches: Sequence[np.ndarray],
    empty_MD: Tensor,
    loss_of: LossOf,
    kept: int = 1,
) -> Tensor:
    """Add the loss's gradient to the weights' `.grad`.

    1. Encode all batches, the last `kept` ones with their graphs. 2. The loss of all vectors, and
    its gradient for each vector. 3. Backward through the batches whose graph is there. 4. Encode
    each other batch again, with its graph, and go backward through it.

    With one batch, or all kept, this is the plain way, and costs no second forward pass.

    Args:
        encode: row numbers to their vectors, float32 [rows, D]; the same each time.
        batches: all of this worker's rows, each once; the dearest first, as `batching` cuts them.
        empty_MD: where vectors are put, float32; overwritten.
        loss_of: all of this worker's vectors, in the rows' order, to the loss.
        kept: batches whose graphs may be held at once.

    Returns:
        The loss, without its graph.
    """
    first_kept = max(0, len(batches) - max(1, kept))
    live: list[Tensor] = []
    for number, rows in enumerate(batches):
        with torch.set_grad_enabled(number >= first_kept):
            vectors = encode(rows)
        if number >= first_kept:
            live.append(vectors)
        empty_MD[rows] = vectors.detach()
    cut_MD = empty_MD.requires_grad_()
    loss = loss_of(cut_MD)
    loss.backward()
    gradient_MD = cut_MD.grad
    if gradient_MD is None:  # this worker has no rows
        return loss.detach()
    # Latest first: its graph is freed before another one is made.
    for rows in reversed(batches[first_kept:]):
        live.pop().backward(gradient_MD[rows])
    for rows in batches[:first_kept]:
        encode(rows).backward(gradient_MD[rows])
    return loss.detach()


def batches_kept(tokens: Sequence[int], graph_tokens: int) -> int:
    """How many of the last batches fit into a budget of tokens with their graphs; one at least.

    Args:
        tokens: each batch's, padding included.
        graph_tokens: the budget.
    """
    within = np.cumsum(tokens[::-1]) <= graph_tokens
    return max(1, int(within.sum()))
