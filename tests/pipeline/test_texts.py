"""Encoder actors that stay: windows of texts, and what comes back when one is killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from stella_ray import Encoder
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import IncompleteRun
from stella_ray.pipeline.cluster import Pool, PoolSettings, an_encoder_a_core, size_pool
from stella_ray.pipeline.texts import CHARACTERS, Embedders, windows
from tests.jobs.conftest import text


def pool(**settings: float) -> Pool:
    known: dict[str, Any] = {
        "encoders": 1,
        "threads": 1,
        "windows_at_once": 1,
        "window_rows": 512,
        "window_retries": 2,
        "cpus_per_encoder": 0.5,
    }
    return Pool(
        **{**known, **settings}, gpus_per_encoder=0, task_cpus=0.25,
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
        (actor,) = embedders._coming.values()  # on its way before the first text
        assert embedders.embed([]).shape == (0, 0)
        vectors = embedders.embed(texts)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, encoder.embed(texts, prefix="none"), atol=1e-5)
        again = embedders.embed(texts[:3])
        assert embedders._ready == [actor]
        np.testing.assert_allclose(again, vectors[:3], atol=1e-5)
        ray.kill(actor, no_restart=False)
        np.testing.assert_allclose(embedders.embed(texts[5:9]), vectors[5:9], atol=1e-5)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actor.embed.remote(None))


@pytest.mark.ray
@pytest.mark.parametrize(
    ("told", "encoders", "threads"),
    [({}, 2, 1), ({"encoders": 1}, 1, 2), ({"cpus_per_encoder": 1.25}, 1, 2)],
)
def test_evaluation_has_an_encoder_a_core_unless_it_is_told_otherwise(
    told: dict[str, Any], encoders: int, threads: int, local_ray: None, monkeypatch: Any
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    found = size_pool(an_encoder_a_core(PoolSettings(**told)))
    assert (found.encoders, found.threads) == (encoders, threads)


@pytest.mark.ray
def test_an_encoder_that_finds_no_room_keeps_nobody_waiting(
    tiny_encoder: Path, local_ray: None
) -> None:
    """The second wants three quarters of the CPUs, as the first does."""
    encoder = Encoder(str(tiny_encoder))
    texts = [text(i, 250) for i in range(300)]
    two = pool(encoders=2, cpus_per_encoder=1.5)
    settings = EncoderSettings(path=str(tiny_encoder))
    with Embedders(settings, encoder.spec.fingerprint["digest"], two) as embedders:
        for _ in range(2):
            np.testing.assert_allclose(
                embedders.embed(texts), encoder.embed(texts, prefix="none"), atol=1e-5
            )
        assert (len(embedders._ready), len(embedders._coming)) == (1, 1)


@pytest.mark.ray
def test_encoders_share_the_windows_and_start_once(tiny_encoder: Path, local_ray: None) -> None:
    encoder = Encoder(str(tiny_encoder))
    texts = [text(i, 250) for i in range(2_000)]
    settings = EncoderSettings(path=str(tiny_encoder))
    two = pool(encoders=2)
    with Embedders(settings, encoder.spec.fingerprint["digest"], two) as embedders:
        while len(embedders._ready) < 2:
            vectors = embedders.embed(texts)
            assert len(embedders._ready) + len(embedders._coming) == 2
        np.testing.assert_allclose(vectors, encoder.embed(texts, prefix="none"), atol=1e-5)


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
