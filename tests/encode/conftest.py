"""Encoders on which a mistake shows, and the plain forward that they are held against."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaTokenizer,
)

from stella_ray.encode.encoder import Encoder
from stella_ray.encode.models import EncoderSettings, EncoderSpec, find_encoder
from stella_ray.errors import ModelError
from tests.conftest import HAN, make_encoder, write

torch.set_num_threads(1)  # matrices this small only wait for their threads

QUERY, PASSAGE = "丁: ", "世: "
"""Prefixes of characters that the tiny vocabulary has, so that the two differ in their tokens."""

LOUD = 10
"""At BERT's initial weights attention moves a vector by less than a cosine of 0.0001, so a batch
whose rows see each other would pass for right; ten times those weights make it 0.99 to 0.8."""


def make_loud(folder: Path) -> Path:
    """Multiply the matrices of the layers of the model in `folder` by `LOUD`."""
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        for weight in model.encoder.parameters():
            if weight.ndim == 2:
                weight *= LOUD
    model.save_pretrained(folder)
    return folder


def make_loud_bert(folder: Path, pooling: str) -> Path:
    """Write the tiny BERT, loud, with prefixes that it can tell apart."""
    make_loud(make_encoder(folder, pooling=pooling, spread=0.02))
    prompts = {"query": QUERY, "passage": PASSAGE, "document": PASSAGE}
    config = {"prompts": prompts, "default_prompt_name": None}
    write(folder / "config_sentence_transformers.json", config)
    return folder


def make_xlmr(folder: Path) -> Path:
    """Write a 2-layer XLM-R of random weights: Unigram tokenizer, 514 positions for 512 tokens."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(c, -5 - i / 100) for i, c in enumerate("abcdefghijklmnopqrstuvwxyz0123456789:")]
    pieces += [(c, -8 - i / 100) for i, c in enumerate(HAN[:500])]
    pieces += [(HAN[0] + HAN[1], -9.0), ("▁pass", -9.0), ("<mask>", 0.0)]
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=514, type_vocab_size=1,
    )  # fmt: skip
    XLMRobertaModel(config).save_pretrained(folder)
    XLMRobertaTokenizer(vocab=pieces).save_pretrained(folder)
    return make_loud(folder)


@pytest.fixture(scope="session")
def loud_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT with mean pooling, loud, prefixes QUERY and PASSAGE."""
    return make_loud_bert(tmp_path_factory.mktemp("models") / "mean", "mean")


@pytest.fixture(scope="session")
def loud_cls_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with cls pooling."""
    return make_loud_bert(tmp_path_factory.mktemp("models") / "cls", "cls")


@pytest.fixture(scope="session")
def xlmr_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny XLM-R without sentence-transformers files, loud."""
    return make_xlmr(tmp_path_factory.mktemp("models") / "xlmr")


def texts_of(*lengths: int, seed: int = 0) -> list[str]:
    """Texts of that many random Chinese characters, one or so a token."""
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(HAN[:500], length)) for length in lengths]


@functools.cache
def _loaded(folder: Path) -> tuple[Any, Any]:
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def plain(folder: Path, texts: Sequence[str], pooling: str, max_tokens: int) -> np.ndarray:
    """Transformers as it comes: one text at a time, float32, attention written out."""
    model, tokenizer = _loaded(folder)
    rows = []
    for text in texts:
        row = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")
        hidden = model(**row).last_hidden_state[0]
        vector = hidden[0] if pooling == "cls" else hidden.mean(0)
        rows.append((vector / vector.norm()).numpy())
    return np.stack(rows)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row; of unit vectors."""
    assert a.shape == b.shape
    for rows in (a, b):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    return (a.astype(np.float64) * b).sum(1)


Copy = Callable[..., Path]


@pytest.fixture(scope="session")
def bare_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder without sentence-transformers files."""
    return make_encoder(tmp_path_factory.mktemp("models") / "bare", pooling=None)


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """A copy of a model folder under `name`, with keys of its JSON files changed."""

    def go(source: Path, name: str = "copy", **changed: dict[str, Any]) -> Path:
        folder = tmp_path / name
        shutil.copytree(source, folder)
        for file, values in changed.items():
            path = folder / f"{file}.json"
            old = json.loads(path.read_text("utf-8")) if path.exists() else {}
            new = {key: value for key, value in (old | values).items() if value != "absent"}
            write(path, new)
        return folder

    return go


def find(path: Path | str, **settings: Any) -> EncoderSpec:
    return find_encoder(EncoderSettings(path=str(path), **settings))


def refused(path: Path | str, **settings: Any) -> str:
    """The one line that an encoder is refused with."""
    with pytest.raises(ModelError) as e:
        Encoder(EncoderSettings(path=str(path), **settings))
    assert "\n" not in str(e.value)
    return str(e.value)


POISON = "龘"
"""A character that the tokenizer of `make_poisonable` knows and its model doesn't."""


def make_poisonable(folder: Path) -> Path:
    """Give the tokenizer in `folder` one token more than the model has embeddings for."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([POISON])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def poisonable_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The loud tiny BERT with mean pooling, whose model raises on POISON."""
    return make_poisonable(make_loud_bert(tmp_path_factory.mktemp("models") / "poison", "mean"))
