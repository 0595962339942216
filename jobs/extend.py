"""Give an encoder more positions, so that it reads longer texts; shorter ones keep their vectors.

python jobs/extend.py --encoder.path MODEL --out FOLDER [--positions 1024] [--alpha 0.2]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from stella_ray import settings
from stella_ray.encode.models import EncoderSettings, Pooling, find_encoder
from stella_ray.learn.folders import check_vacant


@dataclass(frozen=True, kw_only=True)
class EncoderSource:
    """Which encoder is extended."""

    path: str
    """A hub id, a local folder, or a bundled name (multilingual-e5-small)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    pooling: Pooling | None = None
    """mean or cls, written into the new folder. Default: the model's own."""


@dataclass(frozen=True, kw_only=True)
class ExtendJob:
    """Give an encoder more positions."""

    encoder: EncoderSource
    out: str
    """The new model folder; must not be there yet, or be empty."""
    positions: int = 1024
    """Tokens of the longest text from now on; at most the square of what the model has."""
    alpha: float = 0.2
    """Share of the coarse part in the hierarchical decomposition: 0.2 is what stella's authors
    used, 0.4 the original article's. A smaller one keeps new positions nearer to trained ones."""


def run(job: ExtendJob) -> None:
    """Write the extended model folder."""
    settings.refuse_relative(out=job.out)
    check_vacant(job.out)  # before a model is downloaded
    from stella_ray.learn.extend import extend_model, trained_positions  # brings torch

    source = job.encoder
    asked = EncoderSettings(path=source.path, revision=source.revision, pooling=source.pooling)
    spec = find_encoder(asked)
    made = extend_model(
        spec, job.out, job.positions, job.alpha, pooling_asked=source.pooling is not None
    )
    print(
        f"{spec.name}: {trained_positions(spec):,} -> {job.positions:,} positions (alpha"
        f" {job.alpha}); {made} is a model folder, and --encoder.path can name it"
    )


def main() -> None:
    """Read the settings first: a typo costs nothing."""
    about = (__doc__ or "").split("\n\n")[0]
    run(settings.read_settings(ExtendJob, sys.argv[1:], about=about))


if __name__ == "__main__":
    settings.run_job(main)
