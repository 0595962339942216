"""The settings of a training run beside its data; torch isn't needed to read them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from stella_ray.errors import SettingsError

Normalise = Literal["none", "global_mean", "per_tensor_mean"]


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW, and how its rate goes."""

    steps: int = 1_000
    """Updates in all."""
    learning_rate: float = 1e-6
    """At its highest; stella's card: 1e-6."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises from 0."""
    decay: Literal["linear", "none"] = "linear"
    """linear: the rate falls to 0 with the last step."""
    weight_decay: float = 1e-5
    """Of matrices; biases and norms have none. 1e-5 is the authors'."""
    clip_norm: float = 1.0
    """The data's gradient is shortened to this norm before the anchor's is added; 0: it isn't."""
    beta1: float = 0.9
    """AdamW's share of the gradients' mean that stays from step to step."""
    beta2: float = 0.999
    """AdamW's share of their squares' mean that stays."""
    epsilon: float = 1e-8
    """AdamW's, added to the root of that mean; gradients far below it hardly move a weight."""

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        if self.steps < 1:
            raise SettingsError(f"steps {self.steps}; expected 1 or more")
        for name, most in (("warmup", 1.0), ("weight_decay", math.inf), ("clip_norm", math.inf)):
            if not 0 <= getattr(self, name) <= most:
                raise SettingsError(f"{name} {getattr(self, name)}; expected 0 to {most:g}")
        if not self.learning_rate > 0 or not math.isfinite(self.learning_rate):
            raise SettingsError(f"learning_rate {self.learning_rate}; expected a number above 0")

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        warm = math.ceil(self.warmup * self.steps)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        if self.decay == "none":
            return self.learning_rate
        return self.learning_rate * (self.steps - step) / (self.steps - warm)


@dataclass(frozen=True, kw_only=True)
class ComputeSettings:
    """How forward and backward passes run; no result depends on it but by rounding."""

    device: str = "auto"
    """auto: cuda if there is one, else cpu."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers of the passes, by autocast; the weights stay float32. auto: bfloat16 on CUDA, float32
    elsewhere."""
    implementation: Literal["auto", "packed", "padded"] = "auto"
    """packed: no padding, by varlen attention (GPUs of Ampere or later, bfloat16); padded: rows of
    similar length together. auto: packed where it can be."""
    token_budget: int = 0
    """Most tokens in a batch, padding included, whose activations are held at once at least; 0:
    2,048 on a CPU (its cache), up to 32,768 on CUDA."""
    graph_tokens: int = 0
    """Tokens whose activations may be held at once; of a step's other tokens they are computed a
    second time. Bounds the memory. 0: 40% of a GPU's memory, 4 GiB on a CPU."""
    gradient_checkpointing: bool = False
    """Hold each layer's input alone and compute the rest again: for batches of few long rows on
    small devices. Costs a third forward pass where GradCache is at work."""

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        for name in ("token_budget", "graph_tokens"):
            if getattr(self, name) < 0:
                raise SettingsError(
                    f"{name} {getattr(self, name)} is negative; expected 0 (auto) or more"
                )


@dataclass(frozen=True, kw_only=True)
class AnchorSettings:
    """What holds the weights back, and how much."""

    importance: Literal["none", "identity", "fisher"] = "identity"
    """identity: every weight alike, as stella's authors did (L2-SP); fisher: by what the base model
    needs it for (EWC); none: nothing holds it."""
    strength: float = 0.5
    """lambda: the penalty is lambda / 2 x sum of F (theta - theta_0)^2; for fisher with a mean of 1
    the same unit holds. The authors' 10 x sum of squares is 20 here; they took it of 16-bit
    weights, where small drifts are nought. Float32 weights it lets not move (benchmarks/LOG.md).
    Where the penalty's share stays below 1%, little is held; above 30%, little is learnt."""
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


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """The processes that train; 0 means: by what the cluster has."""

    workers: int = 0
    """Processes; 0: one a GPU, without GPUs one. No result depends on it but by rounding."""
    gpus_per_worker: float = 0.0
    """0: one if the cluster has any; less leaves evaluation a share of the same GPU."""
    cpus_per_worker: float = 0.0
    """0: one beside a GPU; else an even share of what evaluation leaves over."""
    threads: int = 0
    """Of torch, in a worker without a GPU; 0: its CPUs. Another number rounds otherwise."""
    max_failures: int = 3
    """Times that lost workers are replaced, and the run goes on from its last checkpoint."""

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        for name in ("workers", "gpus_per_worker", "cpus_per_worker", "threads"):
            if getattr(self, name) < 0:
                raise SettingsError(
                    f"train.{name} {getattr(self, name)} is negative; expected 0 (auto) or more"
                )
