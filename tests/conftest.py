"""What the tests share: a tiny encoder with random weights, and one local Ray."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["HF_HUB_OFFLINE"] = "0"

import pytest

HAN = sorted({chr(c) for c in range(0x4E00, 0x4E00 + 2_000)} | set("查询结果"))


def make_encoder(
    folder: Path,
    *,
    seed: int = 0,
    positions: int = 1_024,
    pooling: str | None = "mean",
    layers: int = 2,
    spread: float = 0.2,
) -> Path:
    """Write a small BERT of random weights over 2,000 Chinese characters; `pooling` None leaves
    the sentence-transformers files out. At BERT's own spread of 0.02, attention hardly moves a
    vector of random weights, and wrong attention goes unseen."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    vocab = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"，。：:!?",
        *"abcdefghijklmnopqrstuvwxyz0123456789",
    ]
    vocab += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"] + HAN
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocab), hidden_size=32, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=positions,
        initializer_range=spread,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
        BertTokenizer({word: i for i, word in enumerate(vocab)}).save_pretrained(folder)
    if pooling:
        types = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(types.items())
        ]
        write(folder / "modules.json", modules)
        write(folder / "1_Pooling/config.json", {
            "word_embedding_dimension": 32, "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
        })  # fmt: skip
        write(folder / "2_Normalize/config.json", {})
        write(
            folder / "sentence_bert_config.json",
            {"max_seq_length": positions, "do_lower_case": False},
        )
        prompts = {"query": "查询: ", "passage": "结果: ", "document": "结果: "}
        write(
            folder / "config_sentence_transformers.json",
            {"prompts": prompts, "default_prompt_name": None},
        )
    return folder


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: BERT, mean pooling, stella's prefixes, 1,024 positions, vectors of 32."""
    return make_encoder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shape with other weights."""
    return make_encoder(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One local Ray of two logical CPUs for the whole session, for jobs called in this process."""
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error",
                 object_store_memory=512 << 20)  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def write_jsonl() -> Callable[..., Path]:
    """Write rows as a .jsonl shard: `write_jsonl(path, [{"id": …, "text": …}])`."""

    def go(path: Path, rows: list[dict[str, Any]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text(lines, encoding="utf-8")
        return path

    return go
