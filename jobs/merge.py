"""Models between a base model and its fine-tuned one: some of the old, some of the new (WiSE-FT).

python jobs/merge.py --base MODEL --tuned MODEL --weights 0.3 0.5 0.7 --out FOLDER
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stella_ray import settings
from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.errors import SettingsError
from stella_ray.learn.folders import check_vacant
from stella_ray.learn.sources import ExampleSource
from stella_ray.pipeline.cluster import PoolSettings, cluster, size_pool
from stella_ray.pipeline.heldout import evaluate_sets
from stella_ray.storage import StorageSettings


@dataclass(frozen=True, kw_only=True)
class MergeJob:
    """Models between a base model and its fine-tuned one."""

    base: str
    """Where the fine-tuned model came from: a hub id, a folder or a bundled name. With fewer
    positions it is extended first."""
    tuned: str
    """The fine-tuned model."""
    out: str
    """Folder of model folders, each called by its weight; must not be there yet, or be empty."""
    weights: list[float] = field(default_factory=lambda: [0.5])
    """Shares of the fine-tuned model, 0 to 1."""
    alpha: float = 0.2
    """Of the extension, where the base has fewer positions; as in jobs/extend.py."""
    evaluation: list[ExampleSource] = field(default_factory=list)
    """Held-out sets that base, models between and tuned are measured on, as in jobs/train.py."""
    pool: PoolSettings = field(default_factory=PoolSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        wrong = [weight for weight in self.weights if not 0 <= weight <= 1]
        if wrong or not self.weights or len(set(self.weights)) < len(self.weights):
            raise SettingsError(
                f"weights {self.weights}; expected one or more from 0 (the base) to 1 (the tuned"
                " model), each once"
            )


def run(job: MergeJob) -> dict[str, dict[str, float]]:
    """Write the models between, and measure all if there are held-out sets."""
    settings.refuse_relative(out=job.out)
    check_vacant(job.out)
    from stella_ray.learn.merging import merge_models  # torch, which --help needn't load

    base, tuned = (find_encoder(EncoderSettings(path=path)) for path in (job.base, job.tuned))
    made = {}
    for weight in sorted(job.weights):
        made[f"{weight:g}"] = str(
            merge_models(base, tuned, f"{job.out}/{weight:g}", weight, job.alpha)
        )
        print(f"{made[f'{weight:g}']}: {weight:g} of {job.tuned}, the rest of {job.base}")
    found: dict[str, dict[str, float]] = {}
    if not job.evaluation:
        return found
    with cluster():
        pool = size_pool(job.pool)
        for name, path in {"base": job.base, **made, "tuned": job.tuned}.items():
            one = EncoderSettings(path=path)
            found[name] = evaluate_sets(job.evaluation, one, pool, job.storage)
            words = ", ".join(f"{metric} {value:.4f}" for metric, value in found[name].items())
            print(f"{name}: {words}")
    return found


def main() -> None:
    """Read the settings first: a typo costs nothing."""
    about = (__doc__ or "").split("\n\n")[0]
    run(settings.read_settings(MergeJob, about=about))


if __name__ == "__main__":
    settings.run_job(main)
