"""Penalties and Fisher information against brute force; merges against arithmetic."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel

from stella_ray.encode.models import EncoderSettings, EncoderSpec, find_encoder
from stella_ray.errors import ModelError, SettingsError
from stella_ray.learn.ewc import Anchor
from stella_ray.learn.extend import extend_model
from stella_ray.learn.fisher import (
    FisherNotes,
    diagonal_fisher,
    load_fisher,
    save_fisher,
    scaled,
)
from stella_ray.learn.merging import merge_models
from stella_ray.learn.positions import extend_positions
from stella_ray.learn.recipe import AnchorSettings
from stella_ray.learn.shuffle import key_of
from tests.conftest import make_encoder

TABLE = "embeddings.position_embeddings.weight"


class Tiny(torch.nn.Module):
    """A table of 'words' and a matrix; a text is its words' numbers. One parameter goes unused."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(12, 5)
        self.mix = torch.nn.Linear(5, 4)
        self.unused = torch.nn.Parameter(torch.ones(3))

    def vectors(self, texts: list[str]) -> Tensor:
        rows = [self.words(torch.tensor([int(w) for w in text.split()])).mean(0) for text in texts]
        return normalize(torch.tanh(self.mix(torch.stack(rows))), dim=-1)


POOLS = [
    (["1 2", "3", "4 5"], ["2 6", "3 7", "5"]),
    (["8", "1 9", "7"], ["8 2", "9", "6 7"]),
]
NOTES = FisherNotes(weights="w", data="d", pool=3, scale=10.0, kind="empirical", seed=3)


def brute_force(model: Tiny, kind: str) -> dict[str, Tensor]:
    """Each row by itself: a forward pass of its own, one answer, a gradient, squared."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for number, (queries, passages) in enumerate(POOLS):
        random = torch.Generator().manual_seed(key_of(NOTES.seed, number) >> 1)
        with torch.no_grad():
            logits = NOTES.scale * model.vectors(queries) @ model.vectors(passages).T
        drawn = torch.multinomial(logits.softmax(1), 1, generator=random)[:, 0]
        for i in range(3):
            model.zero_grad()
            q, d = model.vectors([queries[i]]), model.vectors(passages)
            answer = i if kind == "empirical" else int(drawn[i])
            (NOTES.scale * q @ d.T).log_softmax(1)[0, answer].backward()
            for name, p in model.named_parameters():
                total[name] += 0 if p.grad is None else p.grad**2 / 6
    return total


@pytest.mark.parametrize("kind", ["empirical", "true"])
def test_the_fisher_information_is_the_mean_of_each_rows_squared_gradient(kind: Any) -> None:
    model = Tiny().eval()
    notes = dataclasses.replace(NOTES, kind=kind)
    found, told = diagonal_fisher(model, model.vectors, POOLS, notes)
    for name, wanted in brute_force(model, kind).items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-9)
    assert (told.rows, told.kind) == (6, kind)
    assert not found["unused"].any()
    assert not found["words.weight"][10:].any()


def test_parts_add_up_to_the_whole() -> None:
    model = Tiny().eval()
    notes = dataclasses.replace(NOTES, kind="true")
    whole, told = diagonal_fisher(model, model.vectors, POOLS, notes)
    parts = [diagonal_fisher(model, model.vectors, POOLS[i : i + 1], notes, i) for i in range(2)]
    assert sum(one.rows for _, one in parts) == told.rows
    for name, one in whole.items():
        torch.testing.assert_close((parts[0][0][name] + parts[1][0][name]) / 2, one)


def test_the_fisher_information_is_not_the_square_of_the_mean_gradient() -> None:
    model = Tiny().eval()
    found, _ = diagonal_fisher(model, model.vectors, POOLS[:1], NOTES)
    queries, passages = POOLS[0]
    logits = NOTES.scale * model.vectors(queries) @ model.vectors(passages).T
    logits.log_softmax(1).diagonal().mean().backward()
    assert model.mix.weight.grad is not None
    assert found["mix.weight"].sum() > 1.5 * model.mix.weight.grad.square().sum()


def test_a_pool_of_another_size_or_none_is_refused() -> None:
    model = Tiny().eval()
    with pytest.raises(SettingsError, match="1 queries and 1 passages; expected 3"):
        diagonal_fisher(model, model.vectors, [(["1"], ["2"])], NOTES)
    with pytest.raises(SettingsError, match="no rows"):
        diagonal_fisher(model, model.vectors, [], NOTES)


@pytest.fixture
def fisher_file(tmp_path: Path) -> Path:
    model = Tiny().eval()
    save_fisher(tmp_path / "f.safetensors", *diagonal_fisher(model, model.vectors, POOLS, NOTES))
    return tmp_path / "f.safetensors"


def test_the_file_says_what_the_numbers_depend_on(fisher_file: Path) -> None:
    shapes = {name: p.shape for name, p in Tiny().named_parameters()}
    fisher, notes = load_fisher(fisher_file, shapes)
    assert notes == dataclasses.replace(NOTES, rows=6)
    with safe_open(fisher_file, "pt") as file:
        assert '"pool": 3' in file.metadata()["fisher"]
    assert {name: one.shape for name, one in fisher.items()} == shapes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s | {"more": torch.Size([1])}, "more is in the model alone"),
        (lambda s: {k: v for k, v in s.items() if k != "unused"}, "unused is in the file alone"),
        (lambda s: s | {"unused": torch.Size([4])}, r"unused is \[3\], in the model \[4\]"),
    ],
)
def test_the_fisher_information_of_another_model_is_refused(
    change: Callable[[Any], Any], says: str, fisher_file: Path
) -> None:
    shapes = {name: p.shape for name, p in Tiny().named_parameters()}
    with pytest.raises(ModelError, match=says):
        load_fisher(fisher_file, change(shapes))


def test_a_file_without_fisher_information_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load_fisher(tmp_path / "none", {})
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="holds no Fisher"):
        load_fisher(tmp_path / "other.safetensors", {})


def test_importances_are_clipped_and_brought_to_a_mean_of_one() -> None:
    fisher = {"a": torch.tensor([0.0, 1, 2, 3, 100]), "b": torch.tensor([0.0, 0, 4, 4, 6])}
    assert scaled(fisher, "none", 1)["a"].tolist() == [0, 1, 2, 3, 100]
    assert scaled(fisher, "none", 0.9)["a"].tolist() == [0, 1, 2, 3, 100]
    clipped = scaled(fisher, "none", 0.8)
    assert (clipped["a"].max(), clipped["b"].max()) == (6, 6)
    everything = torch.cat(list(scaled(fisher, "global_mean", 0.8).values()))
    torch.testing.assert_close(everything, torch.cat(list(clipped.values())) / 2.6)
    each = scaled({**fisher, "zero": torch.zeros(2)}, "per_tensor_mean", 1)
    assert [float(each[name].mean()) for name in ("a", "b", "zero")] == [1, 1, 0]
    assert fisher["a"][4] == 100


def drifted(settings: AnchorSettings) -> tuple[Tiny, dict[str, Tensor], Tensor]:
    """A model that moved away from its anchor: it, its gradients of the penalty, the penalty."""
    model = Tiny()
    anchor = Anchor(model.named_parameters(), settings)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
            p.grad = torch.ones_like(p)
    penalty = anchor.add_gradient()
    added = {n: p.grad - 1 for n, p in model.named_parameters() if p.grad is not None}
    return model, added, penalty


def test_identity_is_the_authors_penalty_of_ten_times_the_squares() -> None:
    model, added, penalty = drifted(AnchorSettings(strength=20.0))
    start = dict(Tiny().named_parameters())
    wanted = sum(10.0 * (p - start[name]).square().sum() for name, p in model.named_parameters())
    torch.testing.assert_close(penalty, wanted)
    for name, p in model.named_parameters():
        torch.testing.assert_close(
            added[name], 20 * (p - start[name]).detach(), rtol=1e-4, atol=1e-6
        )


def test_fisher_weighs_each_parameter_and_a_floor_holds_the_rest(fisher_file: Path) -> None:
    more = {"importance": "fisher", "fisher": str(fisher_file), "strength": 3.0, "floor": 0.5}
    model, added, penalty = drifted(AnchorSettings(clip_quantile=1, **more))  # type: ignore[arg-type]
    start = dict(Tiny().named_parameters())
    fisher, _ = load_fisher(fisher_file, {n: p.shape for n, p in start.items()})
    weights = {name: one + 0.5 for name, one in scaled(fisher, "global_mean", 1).items()}
    drift = {name: (p - start[name]).detach() for name, p in model.named_parameters()}
    for name in drift:
        torch.testing.assert_close(
            added[name], 3 * weights[name] * drift[name], rtol=1e-4, atol=1e-6
        )
    torch.testing.assert_close(
        penalty, sum(1.5 * (weights[name] * drift[name] ** 2).sum() for name in drift)
    )


def test_none_holds_nothing() -> None:
    _, added, penalty = drifted(AnchorSettings(importance="none"))
    assert penalty == 0
    assert not any(one.any() for one in added.values())


def test_position_rows_past_the_old_length_are_free(tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(make_encoder(tmp_path / "m", positions=24))
    anchor = Anchor(model.named_parameters(), AnchorSettings(strength=20.0, free_positions_from=16))
    with torch.no_grad():
        for p in model.parameters():
            p += 1
    anchor.add_gradient()
    table = model.get_parameter(TABLE).grad
    torch.testing.assert_close(table[:16], torch.full_like(table[:16], 20))
    assert not table[16:].any()
    words = model.embeddings.word_embeddings.weight.grad
    torch.testing.assert_close(words, torch.full_like(words, 20))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"strength": -1.0}, "strength -1"),
        ({"clip_quantile": 0.0}, "clip_quantile 0"),
        ({"importance": "fisher"}, "needs one"),
        ({"fisher": "x"}, "goes with"),
    ],
)
def test_settings_of_an_anchor_that_can_not_hold_are_refused(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(SettingsError, match=says):
        AnchorSettings(**settings)


def test_weights_of_sixteen_bits_are_refused() -> None:
    with pytest.raises(SettingsError, match="bfloat16, in which small drifts vanish"):
        Anchor(Tiny().bfloat16().named_parameters(), AnchorSettings())


def found(folder: Path) -> EncoderSpec:
    return find_encoder(EncoderSettings(path=str(folder)))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_merge_lies_between_base_and_tuned_with_the_base_extended_first(
    weight: float, tmp_path: Path
) -> None:
    base = make_encoder(tmp_path / "base", positions=16)
    tuned = make_encoder(tmp_path / "tuned", positions=40, seed=1)
    merge_models(found(base), found(tuned), str(tmp_path / "out"), weight)
    a, b, c = (load_file(tmp_path / f"{n}/model.safetensors") for n in ("base", "tuned", "out"))
    a[TABLE] = extend_positions(a[TABLE], 40, 0.2)
    assert c.keys() == b.keys()
    for name in b:
        torch.testing.assert_close(c[name], (1 - weight) * a[name] + weight * b[name])
    assert found(tmp_path / "out").max_tokens == 40


def test_a_merge_of_nothing_with_an_extended_base_is_the_extended_base(tmp_path: Path) -> None:
    base = make_encoder(tmp_path / "base", positions=16)
    extend_model(found(base), str(tmp_path / "longer"), 30, 0.2)
    merge_models(found(base), found(tmp_path / "longer"), str(tmp_path / "out"), 0.5)
    longer, out = (load_file(tmp_path / f"{n}/model.safetensors") for n in ("longer", "out"))
    assert all(np.array_equal(out[name], longer[name]) for name in longer)


def test_models_that_do_not_belong_together_are_not_merged(tmp_path: Path) -> None:
    base = make_encoder(tmp_path / "base", positions=16)
    deep = make_encoder(tmp_path / "deep", positions=16, layers=3)
    cls = make_encoder(tmp_path / "cls", positions=16, pooling="cls")
    for other, says in ((deep, "has a tensor .*layer.2"), (cls, "pools by mean")):
        with pytest.raises(ModelError, match=says):
            merge_models(found(base), found(other), str(tmp_path / "out"), 0.5)
    with pytest.raises(SettingsError, match=r"weight 1\.5"):
        merge_models(found(base), found(base), str(tmp_path / "out"), 1.5)
    assert not [path for path in tmp_path.iterdir() if re.search("out", path.name)]
