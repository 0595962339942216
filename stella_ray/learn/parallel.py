"""Several workers at one step: who encodes which text, and how vectors and gradients meet.

Every worker computes the loss of all rows from all vectors, and the gradient of its own vectors
alone; what the workers' weights get then simply adds up. No scheme with local losses is exact for
CoSENT, and of those for InfoNCE four libraries have three scales.

Legend: N texts of the step, D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from stella_ray.errors import StellaError


@dataclass(frozen=True)
class Workers:
    """The processes of a run, and which one this is."""

    rank: int = 0
    count: int = 1

    @staticmethod
    def of_process_group() -> Workers:
        """Those of torch's process group; without one, this process alone."""
        if not (dist.is_available() and dist.is_initialized()):
            return Workers()
        return Workers(dist.get_rank(), dist.get_world_size())

    def first_fault(self, mine: StellaError | None) -> StellaError | None:
        """What the first worker with a fault found; None where none has one. All must call it."""
        if self.count == 1:
            return mine
        found: list[StellaError | None] = [None] * self.count
        dist.all_gather_object(found, mine)
        return next((one for one in found if one is not None), None)

    def gather(self, mine_MD: Tensor, owner_N: np.ndarray) -> Tensor:
        """The vectors of all texts; a gradient flows into this worker's own alone.

        Args:
            mine_MD: vectors of the texts that this worker owns, in their order.
            owner_N: each text's worker.

        Returns:
            [N, D], the same on every worker.
        """
        if self.count == 1:
            return mine_MD
        places = [torch.from_numpy(np.flatnonzero(owner_N == w)) for w in range(self.count)]
        most = max(map(len, places))
        sent_XD = mine_MD.new_zeros(most, mine_MD.shape[1])
        sent_XD[: len(mine_MD)] = mine_MD.detach()
        got = [torch.empty_like(sent_XD) for _ in range(self.count)]
        dist.all_gather(got, sent_XD)
        parts = [
            mine_MD if worker == self.rank else got[worker][: len(place)]
            for worker, place in enumerate(places)
        ]
        order_N = torch.cat(places).argsort().to(mine_MD.device)
        return torch.cat(parts)[order_N]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the workers; all are float32, in one message."""
        if self.count == 1:
            return
        held = list(tensors)
        flat = torch.cat([one.reshape(-1) for one in held])
        dist.all_reduce(flat)
        for one, sums in zip(held, flat.split([one.numel() for one in held]), strict=True):
            one.copy_(sums.view_as(one))


def deal(costs: Sequence[int], workers: int) -> np.ndarray:
    """Share texts out so that every worker has about as much to do.

    From the dearest down, to and fro (0, 1, 2, 2, 1, 0, …): any text may go to any worker, since
    vectors are gathered by text.

    Args:
        costs: of each text; its characters, say.
        workers: how many.

    Returns:
        Each text's worker, int64 [N]; the same for the same costs in every process.
    """
    turns = np.concatenate([np.arange(workers), np.arange(workers)[::-1]])
    owner = np.empty(len(costs), np.int64)
    owner[np.argsort(-np.asarray(costs, np.int64), kind="stable")] = np.resize(turns, len(costs))
    return owner
