"""Holding the weights near those of the base model, so that it doesn't forget what it could.

stella's card says EWC; its authors' code has no Fisher information but the same weight for every
parameter, which is L2-SP (arXiv 1802.01483). Both are here, by their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from stella_ray.errors import SettingsError
from stella_ray.learn.extend import POSITIONS
from stella_ray.learn.fisher import Normalise, load_fisher, scaled


@dataclass(frozen=True, kw_only=True)
class AnchorSettings:
    """What holds the weights back, and how much."""

    importance: Literal["none", "identity", "fisher"] = "identity"
    """identity: every weight alike, as stella's authors did (L2-SP); fisher: by what the base model
    needs it for (EWC); none: nothing holds it."""
    strength: float = 20.0
    """lambda: the penalty is lambda / 2 x sum of F (theta - theta_0)^2. 20 is the authors'
    10 x sum of squares. For fisher with a mean of 1 the same unit holds."""
    fisher: str | None = None
    """fisher: the file of the base model's Fisher information."""
    normalise: Normalise = "global_mean"
    """fisher: raw numbers depend on pool and scale by orders of magnitude; a mean of 1 doesn't."""
    clip_quantile: float = 0.999
    """fisher: greater importances are set to the one at this quantile; 1: none is."""
    floor: float = 0.0
    """fisher: added to every importance; 87% are 0 (rare words, mostly), and held by nothing."""
    free_positions_from: int | None = None
    """Position rows from this one on are free: those that the extension made, 512 for stella's
    authors (of XLM-R, 514)."""

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        if self.strength < 0 or self.floor < 0:
            raise SettingsError(
                f"anchor: strength {self.strength} and floor {self.floor}; expected 0 or more"
            )
        if not 0 < self.clip_quantile <= 1:
            raise SettingsError(
                f"anchor: clip_quantile {self.clip_quantile}; expected above 0, at most 1"
            )
        if (self.importance == "fisher") != (self.fisher is not None):
            raise SettingsError(
                f"anchor: importance {self.importance} and fisher {self.fisher}; a file goes with"
                " importance fisher, and that needs one"
            )


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
