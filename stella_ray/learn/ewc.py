"""Holding the weights near those of the base model, so that it doesn't forget what it could.

stella's card says EWC; its authors' code has no Fisher information but the same weight for every
parameter, which is L2-SP (arXiv 1802.01483). Both are here, by their names.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

from stella_ray.errors import SettingsError
from stella_ray.learn.extend import POSITIONS
from stella_ray.learn.fisher import load_fisher, scaled
from stella_ray.learn.recipe import AnchorSettings
from stella_ray.learn.shuffle import key_of


class Anchor:
    """The penalty, added to the gradient itself: once an update, after it is reduced and clipped.

    In the gradient and not in the loss, so that neither accumulation nor the number of workers nor
    a loss scale multiplies it and a drift too small for 16-bit numbers is still held back; after
    clipping, since what is clipped is what the data say.

    Args:
        parameters: by name, float32; those that train. As the base model has them: a run that
            resumes makes its anchor before it loads its checkpoint.
        settings: how.

    Raises:
        ModelError: the Fisher information is another model's.
        SettingsError: a parameter isn't float32.
    """

    def __init__(
        self, parameters: Iterable[tuple[str, Parameter]], settings: AnchorSettings
    ) -> None:
        self.strength = 0.0 if settings.importance == "none" else settings.strength
        self.digest = f"{key_of(json.dumps(dataclasses.asdict(settings))):016x}"
        held = [(name, p) for name, p in parameters if p.requires_grad] if self.strength else []
        for name, p in held:
            if p.dtype != torch.float32:
                raise SettingsError(
                    f"anchor: {name} is {p.dtype}, in which small drifts vanish; expected float32"
                    " weights (and 16-bit numbers by autocast)"
                )
        weights = self._importances({name: p.shape for name, p in held}, settings)
        self._held: list[tuple[Parameter, Tensor, Tensor | None]] = []
        for name, p in held:
            weight = None if weights is None else weights[name].to(p.device) + settings.floor
            if settings.free_positions_from is not None and name.endswith(POSITIONS):
                weight = torch.ones_like(p) if weight is None else weight
                weight[settings.free_positions_from :] = 0
            self._held.append((p, p.detach().clone(), weight))

    @staticmethod
    def _importances(
        shapes: Mapping[str, torch.Size], settings: AnchorSettings
    ) -> dict[str, Tensor] | None:
        if settings.fisher is None or not shapes:
            return None
        fisher, _ = load_fisher(Path(settings.fisher), shapes)
        return scaled(fisher, settings.normalise, settings.clip_quantile)

    @torch.no_grad()
    def add_gradient(self) -> Tensor:
        """Add lambda F (theta - theta_0) to each parameter's gradient; returns the penalty.

        Call it on every worker, between clipping and the optimizer's step.
        """
        penalties = []
        for p, start, weight in self._held:
            drift = p - start
            pull = drift if weight is None else weight * drift
            penalties.append((pull * drift).sum())
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            p.grad.add_(pull, alpha=self.strength)
        if not penalties:
            return torch.zeros(())
        return self.strength / 2 * torch.stack(penalties).sum()
