"""One optimizer step after another: from a step's number to weights that have learnt from it.

Everything a step does is a function of the settings, its number and the weights before it, so a run
that stopped goes on as if it hadn't.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stella_ray.encode.encoder import Encoder
from stella_ray.encode.tokens import Ragged
from stella_ray.errors import SettingsError, StellaError
from stella_ray.learn.contrastive import ordered_pairs
from stella_ray.learn.ewc import Anchor
from stella_ray.learn.gradcache import batches_kept, cached_backward
from stella_ray.learn.mixing import Batch, Mixture, batch_loss
from stella_ray.learn.parallel import Workers, deal
from stella_ray.learn.recipe import OptimizerSettings
from stella_ray.learn.shuffle import hashes, key_of
from stella_ray.learn.trainee import Trainee

MEANS = ("exp_avg", "exp_avg_sq")
"""What AdamW remembers of each parameter."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a step did, over all workers."""

    step: int
    source: str
    epoch: int
    loss: float
    """Of the data, with its source's factor."""
    gradient_norm: float
    """Of the data's gradient, before it is clipped."""
    penalty: float
    """The anchor's, before the update."""
    rate: float
    rows: int
    negatives: int
    """Hard negatives in the pool."""
    prefixed: int
    """Rows with the encoder's prefixes."""
    compared: int
    """Pairs of rows that CoSENT compares; 0 for InfoNCE. A step without any learns nothing."""
    texts: int
    tokens: int
    padded_tokens: int
    """That the device worked on in the first pass, padding included."""
    long_texts: int
    """Texts with more tokens than `long_tokens`, which alone train the positions behind it."""

    @property
    def penalty_share(self) -> float:
        """Of loss and penalty together."""
        return self.penalty / total if (total := self.loss + self.penalty) else 0.0


@dataclass(frozen=True)
class _Prepared:
    """One worker's part of a step, ready for the device."""

    batch: Batch
    owner_N: np.ndarray
    texts: list[str]
    rows: Ragged
    row_keys: np.ndarray


class Learner:
    """Encoder, data and optimizer of one worker.

    Args:
        trainee: the encoder, with the base model's weights.
        mixture: the data.
        optimizer: how weights move.
        anchor: what holds them back; made before any checkpoint is loaded.
        workers: the processes of the run.
        seed: of dropout.
        long_tokens: for `StepReport.long_texts`.
        guide: tells false negatives, for sources with a guide_margin.
    """

    def __init__(
        self,
        trainee: Trainee,
        mixture: Mixture,
        optimizer: OptimizerSettings,
        anchor: Anchor,
        workers: Workers = Workers(),
        seed: int = 0,
        long_tokens: int = 512,
        guide: Encoder | None = None,
    ) -> None:
        for stream in mixture.streams:
            if stream.source.guide_margin is not None and guide is None:
                raise SettingsError(
                    f"source {stream.source.name!r} has a guide_margin, and there is no guide;"
                    " name an encoder (--guide) or leave the margin out"
                )
        self.guide = guide
        self.trainee, self.mixture, self.settings = trainee, mixture, optimizer
        self.anchor, self.workers, self.seed = anchor, workers, seed
        self.long_tokens = long_tokens
        self.parameters = trainee.parameters
        matrices = [p for p in self.parameters.values() if p.ndim > 1]
        others = [p for p in self.parameters.values() if p.ndim <= 1]
        self.adam = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": optimizer.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.epsilon,
        )
        self._preparing = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[_Prepared]] | None = None

    def step(self, number: int) -> StepReport:
        """Learn from the batch of this number.

        1. Each worker encodes its share of the texts, and finds the gradient of the whole loss for
        its own vectors, then for the weights. 2. The workers' gradients add up. 3. Clip. 4. Add the
        anchor's. 5. Update.

        Raises:
            StellaError: loss or gradient isn't finite; nothing is updated.
        """
        part = self._prepared(number)
        batch, rows, trainee = part.batch, part.rows, self.trainee
        self.adam.zero_grad(set_to_none=False)
        cut, tokens = trainee.cut(rows)
        once = (
            trainee.settings.gradient_checkpointing
        )  # its second pass asks for the row keys again

        def loss_of(mine_MD: Tensor) -> Tensor:
            all_ND = self.workers.gather(mine_MD, part.owner_N)
            count = len(batch.queries)
            return batch_loss(batch, all_ND[:count], all_ND[count:], self._guided(part))

        loss = cached_backward(
            lambda batch_rows: trainee.vectors(rows, batch_rows, part.row_keys),
            cut,
            torch.empty(len(rows.lengths), trainee.spec.dim, device=trainee.device),
            loss_of,
            kept=1 if once else batches_kept(tokens, trainee.graph_tokens),
        )
        gradients = []
        for p in self.parameters.values():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            gradients.append(p.grad)
        long = int((rows.lengths > self.long_tokens).sum())
        counts = gradients[0].new_tensor([rows.lengths.sum(), sum(tokens), long])
        self.workers.add_up([*gradients, counts])
        norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(float(norm)) or not math.isfinite(float(loss)):
            raise StellaError(
                f"step {number} ({batch.source.name}): loss {float(loss):g}, gradient norm"
                f" {float(norm):g}; lower learning_rate or this source's scale, and resume"
            )
        if self.settings.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(
                self.parameters.values(), self.settings.clip_norm, norm
            )
        penalty = self.anchor.add_gradient()
        for group in self.adam.param_groups:
            group["lr"] = self.settings.rate(number)
        self.adam.step()
        real, padded, long = (int(one) for one in counts.tolist())
        is_cosent = batch.source.loss == "cosent"
        return StepReport(
            step=number,
            source=batch.source.name,
            epoch=batch.epoch,
            loss=float(loss),
            gradient_norm=float(norm),
            penalty=float(penalty),
            rate=self.settings.rate(number),
            rows=len(batch.queries),
            negatives=len(batch.passages) - len(batch.queries),
            prefixed=batch.prefixed,
            compared=ordered_pairs(torch.from_numpy(batch.labels)) if is_cosent else 0,
            texts=len(part.owner_N),
            tokens=real,
            padded_tokens=padded,
            long_texts=long,
        )

    def _guided(self, part: _Prepared) -> tuple[Tensor, Tensor] | None:
        """Queries' and passages' vectors by the guide, where the source asks for it."""
        if self.guide is None or part.batch.source.guide_margin is None:
            return None
        mine = torch.from_numpy(self.guide.embed(part.texts, prefix="none"))
        all_ND = self.workers.gather(mine.to(self.trainee.device), part.owner_N)
        return all_ND[: len(part.batch.queries)], all_ND[len(part.batch.queries) :]

    def digest(self) -> str:
        """What a resumed run must share with the run it goes on from."""
        parts = [dataclasses.asdict(self.settings), self.mixture.digest(), self.seed]
        parts += [self.trainee.spec.fingerprint["weights"], self.anchor.digest]
        parts += [self.guide and self.guide.spec.fingerprint["digest"]]
        return f"{key_of(json.dumps(parts, sort_keys=True)):016x}"

    def means(self) -> dict[str, Tensor]:
        """AdamW's two means of each parameter, "exp_avg/name" and "exp_avg_sq/name"."""
        return {
            f"{mean}/{name}": self.adam.state[p][mean].detach().cpu().contiguous()
            for name, p in self.parameters.items()
            for mean in MEANS
            if p in self.adam.state
        }

    def load_means(self, means: Mapping[str, Tensor], steps: int) -> None:
        """Go on with what `means` gave after so many steps; weights are loaded by the trainee."""
        for name, p in self.parameters.items():
            held = {mean: means[f"{mean}/{name}"].to(p.device, copy=True) for mean in MEANS}
            self.adam.state[p] = {"step": torch.tensor(float(steps)), **held}

    def _prepared(self, number: int) -> _Prepared:
        """The step's part, which a thread has made beside the step before, and begin the next."""
        if self._next and self._next[0] == number:
            part = self._next[1].result()
        else:
            part = self._prepare(number)
        if number + 1 < self.settings.steps:
            self._next = number + 1, self._preparing.submit(self._prepare, number + 1)
        return part

    def _prepare(self, number: int) -> _Prepared:
        batch = self.mixture.batch(number)
        texts = batch.queries + batch.passages
        owner_N = deal([len(text) for text in texts], self.workers.count)
        mine = np.flatnonzero(owner_N == self.workers.rank)
        own = [texts[i] for i in mine]
        row_keys = hashes(mine, key_of(self.seed, "dropout", number))
        return _Prepared(batch, owner_N, own, self.trainee.tokenizer(own), row_keys)
