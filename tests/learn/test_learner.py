"""A step: its gradient against the plain one for any budget and number of workers, and resuming."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing

from stella_ray.encode.encoder import Encoder
from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.errors import ModelError, SettingsError, StellaError
from stella_ray.learn.checkpoints import read_checkpoint, write_checkpoint
from stella_ray.learn.ewc import Anchor
from stella_ray.learn.examples import open_examples
from stella_ray.learn.gradcache import batches_kept, cached_backward
from stella_ray.learn.learner import Learner
from stella_ray.learn.mixing import ExampleStream, Mixture, batch_loss
from stella_ray.learn.parallel import Workers, deal
from stella_ray.learn.recipe import AnchorSettings, ComputeSettings, OptimizerSettings
from stella_ray.learn.trainee import Trainee
from tests.learn.training_data import write_sources


def make_learner(
    encoder: Path,
    folder: Path,
    compute: ComputeSettings = ComputeSettings(),
    anchor: AnchorSettings = AnchorSettings(),
    optimizer: OptimizerSettings = OptimizerSettings(steps=6, learning_rate=1e-3),
    **more: Any,
) -> Learner:
    spec = find_encoder(EncoderSettings(path=str(encoder)))
    trainee = Trainee(spec, compute, dropout=more.pop("dropout", 0.2))
    sources = write_sources(folder)
    sources[0] = dataclasses.replace(sources[0], guide_margin=more.pop("guide_margin", None))
    streams = [
        ExampleStream(source, open_examples(source, folder / "cache"), 3, "查询: ", "结果: ")
        for source in sources
    ]
    held = Anchor(trainee.parameters.items(), anchor)
    return Learner(trainee, Mixture(streams, 3), optimizer, held, seed=3, **more)


def plain_gradient(learner: Learner, step: int) -> dict[str, torch.Tensor]:
    """The definition: all texts in one padded forward pass, one loss, one backward pass."""
    batch = learner.mixture.batch(step)
    part = learner._prepare(step)
    lengths = part.rows.lengths
    trainee = learner.trainee
    for p in trainee.parameters.values():
        p.grad = None
    order = np.argsort(-lengths, kind="stable")
    vectors = trainee.vectors(part.rows, order, part.row_keys)[torch.from_numpy(order).argsort()]
    count = len(batch.queries)
    batch_loss(batch, vectors[:count], vectors[count:]).backward()
    return {name: p.grad.clone() for name, p in trainee.parameters.items() if p.grad is not None}


def step_gradients(learner: Learner, step: int) -> dict[str, torch.Tensor]:
    """What a step leaves in `.grad`, the update itself held back."""
    learner.step(step)
    return {name: p.grad.clone() for name, p in learner.parameters.items() if p.grad is not None}


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The greatest difference, relative to the whole gradient's norm."""
    norm = torch.stack([one.norm() for one in a.values()]).norm()
    return max(
        float((a[name] - b.get(name, torch.zeros_like(a[name]))).norm()) for name in a
    ) / float(norm)


UNTOUCHED = OptimizerSettings(steps=6, learning_rate=1e-30, clip_norm=0)
NO_ANCHOR = AnchorSettings(importance="none")


@pytest.mark.parametrize(
    "compute",
    [
        ComputeSettings(token_budget=1_024, graph_tokens=1),
        ComputeSettings(token_budget=1_500, graph_tokens=2_000),
        ComputeSettings(token_budget=1_024, graph_tokens=1, implementation="packed"),
        ComputeSettings(token_budget=1_024, graph_tokens=1, gradient_checkpointing=True),
        ComputeSettings(token_budget=1 << 20, graph_tokens=1 << 20),
    ],
    ids=["cached", "half cached", "packed", "checkpointed", "plain"],
)
def test_any_budget_gives_the_plain_gradient_with_dropout_on(
    compute: ComputeSettings, tiny_encoder: Path, tmp_path: Path
) -> None:
    learner = make_learner(tiny_encoder, tmp_path, compute, NO_ANCHOR, UNTOUCHED)
    seen = set()
    for step in range(3):  # one of each source
        expected = plain_gradient(learner, step)
        seen.add(learner.mixture.batch(step).source.kind)
        assert furthest(expected, step_gradients(learner, step)) < 1e-5
    assert seen == {"pairs", "scored", "nli"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("compute", "most"),
    [
        (ComputeSettings(device="cuda", dtype="float32", token_budget=1_024, graph_tokens=1), 1e-4),
        (ComputeSettings(device="cuda", token_budget=1_024, graph_tokens=1), 0.1),
    ],
    ids=["float32", "packed bfloat16"],
)
def test_on_cuda_a_step_has_the_gradient_of_a_cpu(
    compute: ComputeSettings, most: float, tiny_encoder: Path, tmp_path: Path
) -> None:
    """Dropout is the same on both: its masks are integers' hashes."""
    there = make_learner(tiny_encoder, tmp_path, compute, NO_ANCHOR, UNTOUCHED)
    here = make_learner(tiny_encoder, tmp_path, ComputeSettings(device="cpu"), NO_ANCHOR, UNTOUCHED)
    for step in range(3):
        expected = step_gradients(here, step)
        found = {name: one.cpu() for name, one in step_gradients(there, step).items()}
        assert furthest(expected, found) < most


def test_dropout_is_on_in_these_gradients(tiny_encoder: Path, tmp_path: Path) -> None:
    with_it = make_learner(tiny_encoder, tmp_path, anchor=NO_ANCHOR, optimizer=UNTOUCHED)
    without = make_learner(
        tiny_encoder, tmp_path, anchor=NO_ANCHOR, optimizer=UNTOUCHED, dropout=0.0
    )
    assert furthest(step_gradients(with_it, 0), step_gradients(without, 0)) > 0.1


def worker(rank: int, count: int, port: int, encoder: Path, folder: Path) -> None:
    """One process of several: its gradients and the weights after three steps, to a file."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=count)
    compute = ComputeSettings(token_budget=1_024, graph_tokens=1)
    own = folder / f"{rank}-of-{count}"  # two that write the same files would read halves of them
    learner = make_learner(
        encoder, own, compute, optimizer=UNTOUCHED, workers=Workers.of_process_group()
    )
    found: dict[str, Any] = {}
    for step in range(3):
        report = learner.step(step)
        found[f"report-{step}"] = dataclasses.asdict(report)
        found[f"gradient-{step}"] = {n: p.grad.clone() for n, p in learner.parameters.items()}  # type: ignore[union-attr]
    torch.save(found, folder / f"worker-{rank}-of-{count}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_workers_add_up_to_the_gradient_of_one(
    count: int, tiny_encoder: Path, tmp_path: Path
) -> None:
    """With the anchor on: its pull isn't multiplied by the number of workers."""
    alone = make_learner(tiny_encoder, tmp_path, optimizer=UNTOUCHED)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    torch.multiprocessing.spawn(worker, (count, port, tiny_encoder, tmp_path), nprocs=count)
    each = [
        torch.load(tmp_path / f"worker-{rank}-of-{count}.pt", weights_only=True)
        for rank in range(count)
    ]
    for step in range(3):
        report = dataclasses.asdict(alone.step(step))
        expected = {n: p.grad.clone() for n, p in alone.parameters.items()}  # type: ignore[union-attr]
        for found in each:
            assert furthest(expected, found[f"gradient-{step}"]) < 1e-5
            told = found[f"report-{step}"]
            for name in ("tokens", "texts", "long_texts", "negatives", "rows", "source"):
                assert told[name] == report[name]
            assert told["loss"] == pytest.approx(report["loss"], rel=1e-5)


def run_steps(learner: Learner, first: int, last: int) -> dict[str, torch.Tensor]:
    for step in range(first, last):
        learner.step(step)
    return {name: p.detach().clone() for name, p in learner.parameters.items()}


def test_a_resumed_run_ends_with_the_undisturbed_ones_weights_bit_for_bit(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    anchored = AnchorSettings(strength=5.0)
    undisturbed = make_learner(tiny_encoder, tmp_path, anchor=anchored)
    expected = run_steps(undisturbed, 0, 6)
    first = make_learner(tiny_encoder, tmp_path, anchor=anchored)
    reports = [first.step(step) for step in range(4)]
    (tmp_path / "checkpoint").mkdir()
    write_checkpoint(first, tmp_path / "checkpoint", reports)
    second = make_learner(tiny_encoder, tmp_path, anchor=anchored)
    assert read_checkpoint(second, tmp_path / "checkpoint") == reports
    found = run_steps(second, 4, 6)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    start = Trainee(second.trainee.spec).parameters
    assert not torch.equal(
        expected["embeddings.LayerNorm.weight"], start["embeddings.LayerNorm.weight"]
    )


def test_a_checkpoint_of_other_settings_is_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    learner = make_learner(tiny_encoder, tmp_path)
    (tmp_path / "checkpoint").mkdir()
    write_checkpoint(learner, tmp_path / "checkpoint", [learner.step(0)])
    other = make_learner(tiny_encoder, tmp_path, anchor=AnchorSettings(strength=7.0))
    with pytest.raises(SettingsError, match="other settings"):
        read_checkpoint(other, tmp_path / "checkpoint")


def test_a_checkpoints_model_is_an_encoder_of_the_learnt_weights(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    learner = make_learner(tiny_encoder, tmp_path)
    run_steps(learner, 0, 2)
    made = learner.trainee.save(tmp_path / "model")
    texts = ["一二三四五", "七八九十" * 30]
    saved = Encoder(str(made)).embed(texts)
    learner.trainee.model.eval()
    rows = learner.trainee.tokenizer(texts, "结果: ")
    with torch.no_grad():
        live = learner.trainee.vectors(rows, np.array([1, 0]), np.zeros(2, np.uint64))[[1, 0]]
    assert np.abs(saved - live.numpy()).max() < 1e-6
    assert (saved * Encoder(str(tiny_encoder)).embed(texts)).sum(1).max() < 0.9999


def test_learning_brings_the_loss_down(tiny_encoder: Path, tmp_path: Path) -> None:
    optimizer = OptimizerSettings(steps=45, learning_rate=1e-3, decay="none")
    learner = make_learner(
        tiny_encoder, tmp_path, anchor=NO_ANCHOR, optimizer=optimizer, dropout=0.0
    )
    reports = [learner.step(step) for step in range(45)]
    for name in ("pairs", "scored", "nli"):
        losses = [one.loss for one in reports if one.source == name]
        assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])


def test_a_loss_that_is_no_number_stops_before_the_weights_are_touched(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    learner = make_learner(tiny_encoder, tmp_path)
    with torch.no_grad():
        learner.parameters["embeddings.LayerNorm.weight"][0] = torch.nan
    before = {name: p.detach().clone() for name, p in learner.parameters.items()}
    with pytest.raises(StellaError, match=r"step 0 \(\w+\): loss nan"):
        learner.step(0)
    assert all(
        torch.equal(p.nan_to_num(), before[n].nan_to_num()) for n, p in learner.parameters.items()
    )


def test_a_guide_takes_false_negatives_out(tiny_encoder: Path, tmp_path: Path) -> None:
    """With a margin of 100%, whatever has a positive cosine is out: the loss goes down."""
    losses = []
    for margin in (None, 0.05, 1.0):
        learner = make_learner(
            tiny_encoder, tmp_path, anchor=NO_ANCHOR, optimizer=UNTOUCHED,
            guide=Encoder(str(tiny_encoder)), guide_margin=margin,
        )  # fmt: skip
        pairs = next(i for i in range(3) if learner.mixture.batch(i).source.kind == "pairs")
        losses.append(learner.step(pairs).loss)
    assert losses[0] > losses[1] > losses[2] >= 0
    with pytest.raises(SettingsError, match="there is no guide"):
        make_learner(tiny_encoder, tmp_path, guide_margin=0.1)


def test_the_rate_rises_then_falls_to_nothing() -> None:
    settings = OptimizerSettings(steps=100, learning_rate=1.0, warmup=0.1)
    rates = [settings.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[99] == pytest.approx(1 / 90)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_texts_are_dealt_evenly() -> None:
    costs = [100 - i for i in range(100)]
    owner = deal(costs, 3)
    loads = [sum(np.asarray(costs)[owner == w]) for w in range(3)]
    assert max(loads) - min(loads) <= 100
    assert set(owner.tolist()) == {0, 1, 2}


def test_memory_goes_by_the_batches_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """At no moment are there more graphs than allowed."""
    weight = torch.ones(4, requires_grad=True)
    live, most = [0], [0]

    def encode(rows: np.ndarray) -> torch.Tensor:
        out = torch.ones(len(rows), 4) * weight
        if out.requires_grad:
            live[0] += 1
            most[0] = max(most[0], live[0])
            out.register_hook(lambda _: live.__setitem__(0, live[0] - 1))
        return out

    cut = [np.array([0, 1]), np.array([2, 3]), np.array([4])]
    for kept in (1, 2, 3):
        live[0] = most[0] = 0
        weight.grad = None
        cached_backward(encode, cut, torch.empty(5, 4), lambda all_rows: (all_rows**2).sum(), kept)
        assert most[0] == kept
        assert weight.grad is not None
        assert (weight.grad == 10).all()
    assert [batches_kept([5, 4, 3], budget) for budget in (1, 3, 7, 12)] == [1, 1, 2, 3]


def test_other_kinds_of_model_are_refused(tiny_encoder: Path) -> None:
    spec = find_encoder(EncoderSettings(path=str(tiny_encoder)))
    with pytest.raises(ModelError, match="a t5 can't be trained here"):
        Trainee(dataclasses.replace(spec, model_type="t5"))
    with pytest.raises(SettingsError, match="token_budget 8 can't hold a row"):
        Trainee(spec, ComputeSettings(token_budget=8))
