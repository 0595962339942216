"""The jobs beside training: Fisher information by actors, and models between base and tuned."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from jobs.fisher import FisherJob, GeneralPairs
from jobs.fisher import run as measure
from jobs.merge import MergeJob
from jobs.merge import run as merge
from jobs.train import anchor_of
from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.errors import ModelError, SettingsError
from stella_ray.learn.ewc import Anchor
from stella_ray.learn.examples import open_examples
from stella_ray.learn.fisher import FisherNotes, diagonal_fisher, load_fisher
from stella_ray.learn.recipe import AnchorSettings
from stella_ray.pipeline.cluster import PoolSettings
from stella_ray.pipeline.fisher import FisherPlan, MeasurePools
from tests.learn.training_data import write_sources

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_actors_measure_what_one_process_would(
    local_ray: None, tmp_path: Path, tiny_encoder: Path, other_encoder: Path
) -> None:
    pairs = write_sources(tmp_path)[0].files
    job = FisherJob(
        encoder=EncoderSettings(path=str(tiny_encoder)),
        pairs=GeneralPairs(files=pairs),
        out=str(tmp_path / "fisher.safetensors"),
        rows=32,
        pool_size=8,
        pool=PoolSettings(encoders=1, cpus_per_encoder=0.5),
    )
    out = measure(job)
    spec = find_encoder(job.encoder)
    source = dataclasses.replace(
        write_sources(tmp_path)[0],
        name="fisher", negatives_column=None, batch_size=8, negative_share=0.0, prefix="auto",
    )  # fmt: skip
    told = FisherPlan(
        encoder=job.encoder, source=source, compute=job.compute, pools=4, storage=job.storage,
        notes=FisherNotes(weights="", data="", pool=8),
    )  # fmt: skip
    here = MeasurePools(told)
    shapes = {name: p.shape for name, p in here.trainee.parameters.items()}
    fisher, notes = load_fisher(out, shapes)
    assert (notes.rows, notes.pool, notes.weights) == (32, 8, spec.fingerprint["weights"])
    assert notes.data == open_examples(source).digest
    expected, _ = diagonal_fisher(here.trainee.model, here._vectors, here._pools(0, 4), notes)
    assert sum(float(one.sum()) for one in expected.values()) > 0
    for name, one in expected.items():
        torch.testing.assert_close(fisher[name], one, rtol=1e-3, atol=1e-6 * float(one.max() + 1))

    anchor = AnchorSettings(importance="fisher", fisher=str(out))
    assert (
        Anchor(here.trainee.parameters.items(), anchor_of(spec, anchor)).strength == anchor.strength
    )
    other = find_encoder(EncoderSettings(path=str(other_encoder)))
    with pytest.raises(ModelError, match="measure it on this base model"):
        anchor_of(other, anchor)
    with pytest.raises(SettingsError, match="is there"):
        measure(job)
    with pytest.raises(SettingsError, match="40 pairs, where --rows 64 need 64"):
        measure(dataclasses.replace(job, out=f"{out}.new", rows=64))


def test_models_between_are_written_and_measured_beside_the_two(
    local_ray: None, tmp_path: Path, tiny_encoder: Path, other_encoder: Path
) -> None:
    job = MergeJob(
        base=str(tiny_encoder),
        tuned=str(other_encoder),
        out=str(tmp_path / "between"),
        weights=[0.0],
        evaluation=write_sources(tmp_path)[:2],
        pool=PoolSettings(encoders=1, cpus_per_encoder=0.5),
    )
    found = merge(job)
    assert list(found) == ["base", "0", "tuned"]
    assert found["0"] == found["base"]
    assert found["tuned"] != found["base"]
    with pytest.raises(SettingsError, match="isn't empty"):
        merge(job)
    with pytest.raises(SettingsError, match=r"weights \[1.5\]; expected"):
        dataclasses.replace(job, weights=[1.5])
