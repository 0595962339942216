"""Encoders that are refused: each with one line of what was found, expected, and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import SettingsError
from tests.conftest import write
from tests.encode.conftest import Copy, find, refused


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"pooling_mode": "max"}, "['max']"),
        ({"pooling_mode": ["mean", "cls"]}, "['mean', 'cls']"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "['mean_sqrt_len']"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "['cls', 'mean']"),
        ({}, "[]"),
        ({"pooling_mode": "mean", "include_prompt": False}, "include_prompt false"),
    ],
)
def test_another_pooling_than_mean_or_cls_is_refused(
    tiny_encoder: Path, copy: Copy, config: dict[str, Any], found: str
) -> None:
    folder = copy(tiny_encoder)
    write(folder / "1_Pooling/config.json", config)
    message = refused(folder)
    assert found in message
    assert "isn't supported; expected" in message


def test_max_tokens_above_the_positions_is_refused_with_both_numbers(tiny_encoder: Path) -> None:
    message = refused(tiny_encoder, max_tokens=1_025)
    assert "--encoder.max_tokens 1025 is above the 1024 positions" in message
    assert "give --encoder.max_tokens 1024 or less" in message


def test_a_folder_that_says_more_tokens_than_it_has_positions_is_refused(
    tiny_encoder: Path, copy: Copy
) -> None:
    folder = copy(tiny_encoder, sentence_bert_config={"max_seq_length": 2_048})
    assert "the model's own max_tokens 2048 is above the 1024 positions" in refused(folder)
    assert find(folder, max_tokens=512).max_tokens == 512


@pytest.mark.parametrize("pooling", [None, "mean"])
def test_a_dense_module_is_refused(tiny_encoder: Path, copy: Copy, pooling: Any) -> None:
    folder = copy(tiny_encoder)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    write(folder / "modules.json", modules)
    assert "module Dense in modules.json isn't supported" in refused(folder, pooling=pooling)


def test_pickled_weights_alone_are_refused(tiny_encoder: Path, copy: Copy) -> None:
    folder = copy(tiny_encoder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    message = refused(folder)
    assert "no .safetensors weights; only that format is loaded" in message
    assert "save_pretrained" in message


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("config.json", None, "no hidden_size in config.json; expected a transformers encoder"),
        ("config.json", b"{", "config.json: not readable as JSON"),
        ("config.json", b"\xff\xfe\x00", "config.json: not readable as JSON"),
        ("config.json", b"[]", "no hidden_size in config.json"),
        ("config.json", b'{"hidden_size": 32}', "no max_position_embeddings in config.json"),
        ("modules.json", b"{", "modules.json: not readable as JSON"),
        ("tokenizer.json", None, "neither tokenizer.json nor vocab.txt"),
        ("model.safetensors", b"", "damaged safetensors file"),
        ("model.safetensors", b"garbage" * 100, "damaged safetensors file"),
        ("model.safetensors", "half", "damaged safetensors file"),
    ],
)
def test_a_damaged_folder_is_refused_by_its_file(
    tiny_encoder: Path, copy: Copy, file: str, damage: Any, says: str
) -> None:
    path = copy(tiny_encoder) / file
    if damage is None:
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if damage == "half" else damage)
    message = refused(path.parent)
    assert str(path.parent) in message
    assert says in message


def test_weights_that_lack_a_layer_are_refused_rather_than_made_up(
    tiny_encoder: Path, copy: Copy
) -> None:
    deeper = copy(tiny_encoder, "deeper", config={"num_hidden_layers": 3})
    assert "of the model's weights aren't in its .safetensors files" in refused(deeper)
    wider = copy(tiny_encoder, "wider", config={"hidden_size": 64})
    assert "the weights can't be loaded" in refused(wider)


@pytest.mark.parametrize("name", ["no-such-model", "./no/such", "/no/such", "a/b/c", "~/no/such"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused_with_the_ways_out(name: str) -> None:
    message = refused(name)
    assert message.startswith(f"{name}: no such folder, hub id (owner/name) or bundled name")
    assert "multilingual-e5-small" in message
    assert "--encoder.path" in message


def test_a_revision_goes_only_with_a_hub_id(tiny_encoder: Path) -> None:
    assert "is a local folder" in refused(tiny_encoder, revision="main")
    assert "is a bundled model" in refused("multilingual-e5-small", revision="main")


def test_settings_that_cannot_hold_are_refused_before_a_model_is_looked_for() -> None:
    with pytest.raises(SettingsError, match="max_tokens 7 is too small"):
        EncoderSettings(path="no/such", max_tokens=7)
    with pytest.raises(SettingsError, match="token_budget 100 can't hold a row of max_tokens 512"):
        EncoderSettings(path="no/such", max_tokens=512, token_budget=100)
