"""Encoder actors that stay: windows of texts, and what comes back when one is killed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import ray

from stella_ray import Encoder
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import IncompleteRun
from stella_ray.pipeline.cluster import Pool
from stella_ray.pipeline.texts import CHARACTERS, Embedders, windows
from tests.jobs.conftest import text


def pool(**settings: int) -> Pool:
    known = {
        "encoders": 1,
        "threads": 1,
        "windows_at_once": 1,
        "window_rows": 512,
        "window_retries": 2,
    }
    return Pool(
        **{**known, **settings}, gpus_per_encoder=0, cpus_per_encoder=0.5, task_cpus=0.25,
        block_bytes=1, no_progress_seconds=60, most_encoders=None,
    )  # fmt: skip


def test_windows_hold_every_text_once_the_longest_first() -> None:
    texts = ["一" * n for n in (3, 900, 5, 1, 77)] * 100
    cut = list(windows(texts, pool(window_rows=128)))
    lengths = [len(texts[i]) for window in cut for i in window]
    assert sorted(i for window in cut for i in window.tolist()) == list(range(500))
    assert lengths == sorted(lengths, reverse=True)
    assert all(len(window) <= 128 for window in cut)


def test_windows_of_few_texts_are_shared_out_among_the_encoders() -> None:
    cut = list(windows([str(i) for i in range(2_000)], pool(encoders=4, window_rows=8_192)))
    assert [len(window) for window in cut] == [125] * 16


def test_a_window_of_very_long_texts_is_a_short_one() -> None:
    cut = list(windows(["一" * CHARACTERS, "二" * (CHARACTERS // 2), "三"], pool()))
    assert [window.tolist() for window in cut] == [[0], [1, 2]]


@pytest.mark.ray
def test_actors_stay_for_many_calls_and_survive_their_death(
    tiny_encoder: Path, local_ray: None
) -> None:
    settings = EncoderSettings(path=str(tiny_encoder))
    encoder = Encoder(settings)
    digest = encoder.spec.fingerprint["digest"]
    texts = [text(i, 5 + i % 40) for i in range(300)]
    texts += texts[:50]
    with Embedders(settings, digest, pool(windows_at_once=2)) as embedders:
        (actor,) = embedders._actors  # on its way before the first text
        assert embedders.embed([]).shape == (0, 0)
        vectors = embedders.embed(texts)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, encoder.embed(texts, prefix="none"), atol=1e-5)
        again = embedders.embed(texts[:3])
        assert embedders._actors == [actor]
        np.testing.assert_allclose(again, vectors[:3], atol=1e-5)
        ray.kill(actor, no_restart=False)
        np.testing.assert_allclose(embedders.embed(texts[5:9]), vectors[5:9], atol=1e-5)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actor.embed.remote(None))


def dies(_settings: EncoderSettings, _digest: str) -> Encoder:
    os._exit(1)


@pytest.mark.ray
def test_an_encoder_whose_process_always_dies_ends_the_run_with_one_line(
    tiny_encoder: Path, local_ray: None
) -> None:
    settings = EncoderSettings(path=str(tiny_encoder))
    with Embedders(settings, "", pool(window_retries=0), dies) as embedders:
        with pytest.raises(IncompleteRun, match="kept dying") as error:
            embedders.embed(["一"])
        assert "\n" not in str(error.value)
