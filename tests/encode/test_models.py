"""Which encoder a name means, what wins over what, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from stella_ray.encode.encoder import Encoder
from stella_ray.encode.models import (
    KNOWN_ENCODERS,
    EncoderSettings,
    EncoderSpec,
    KnownEncoder,
)
from tests.conftest import write
from tests.encode.conftest import Copy, cosines, find, refused, texts_of

BGE_QUERY = "为这个句子生成表示以用于检索相关文章："
MODEL_CARDS = {
    "stella-base-zh": ("mean", "查询: ", "结果: ", 1024),
    "stella-large-zh": ("mean", "查询: ", "结果: ", 1024),
    "piccolo-base-zh": ("mean", "查询: ", "结果: ", 512),
    "piccolo-large-zh": ("mean", "查询: ", "结果: ", 512),
    "bge-base-zh": ("cls", BGE_QUERY, "", 512),
    "bge-large-zh": ("cls", BGE_QUERY, "", 512),
    "bge-large-zh-no-instruct": ("cls", "", "", 512),
    "multilingual-e5-small": ("mean", "query: ", "passage: ", 512),
}


def of(spec: EncoderSpec) -> tuple[str, str, str, int]:
    return spec.pooling, spec.query_prefix, spec.passage_prefix, spec.max_tokens


# ---------------------------------------------------------------- what wins


def test_the_table_of_known_encoders_says_what_their_model_cards_say() -> None:
    names = ("pooling", "query_prefix", "passage_prefix", "max_tokens")
    cards = {
        model: KnownEncoder(**dict(zip(names, card, strict=True)))  # type: ignore[arg-type]
        for model, card in MODEL_CARDS.items()
    }
    assert cards == KNOWN_ENCODERS


@pytest.mark.parametrize("name", MODEL_CARDS)
def test_a_folder_of_a_known_name_without_files_of_its_own_uses_the_table(
    bare_encoder: Path, copy: Copy, name: str
) -> None:
    folder = copy(bare_encoder, f"some/where/{name}")
    assert of(find(folder)) == of(find(f"{folder}/")) == MODEL_CARDS[name]


def test_a_folders_own_files_win_over_the_table(tiny_encoder: Path, copy: Copy) -> None:
    prompts = {"query": "问: ", "passage": "文: "}
    folder = copy(
        tiny_encoder, "bge-base-zh",
        sentence_bert_config={"max_seq_length": 300},
        config_sentence_transformers={"prompts": prompts},
    )  # fmt: skip
    assert of(find(folder)) == ("mean", "问: ", "文: ", 300)


def test_explicit_settings_win_over_the_folder_and_the_table(
    tiny_encoder: Path, bare_encoder: Path, copy: Copy
) -> None:
    folders = (tiny_encoder, copy(bare_encoder, "stella-base-zh"))
    for folder in folders:
        spec = find(folder, pooling="cls", query_prefix="", passage_prefix="文: ", max_tokens=99)
        assert of(spec) == ("cls", "", "文: ", 99)


def test_an_unknown_folder_without_files_of_its_own_must_be_told_its_pooling(
    bare_encoder: Path,
) -> None:
    message = refused(bare_encoder)
    assert "not a known encoder" in message
    assert "--encoder.pooling mean or cls" in message
    assert of(find(bare_encoder, pooling="mean")) == ("mean", "", "", 1_024)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_both_spellings_of_the_pooling_are_read(
    tiny_encoder: Path, copy: Copy, pooling: str
) -> None:
    old = {f"pooling_mode_{kind}": False for kind in ("max_tokens", "lasttoken")}
    old |= {
        f"pooling_mode_{kind}": kind.startswith(pooling) for kind in ("cls_token", "mean_tokens")
    }
    new = {"embedding_dimension": 32, "pooling_mode": pooling, "include_prompt": True}
    for name, config in {"old": old, "new": new}.items():
        folder = copy(tiny_encoder, name)
        write(folder / "1_Pooling/config.json", config)
        assert find(folder).pooling == pooling


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_folder_that_sentence_transformers_saved_gives_its_vectors(
    pooling: str, loud_encoder: Path, loud_cls_encoder: Path, tmp_path: Path
) -> None:
    source = {"mean": loud_encoder, "cls": loud_cls_encoder}[pooling]
    theirs = SentenceTransformer(str(source), device="cpu")
    theirs.max_seq_length = 100
    theirs.prompts = {"query": "丂: ", "document": "丈: "}
    # A known encoder's name: what the folder says must win all the same.
    theirs.save(str(tmp_path / "stella-base-zh"))
    ours = Encoder(str(tmp_path / "stella-base-zh"))
    assert of(ours.spec) == (pooling, "丂: ", "丈: ", 100)
    texts = texts_of(1, 5, 90, 95, 98, 200, 1_500)
    for name, prompt in {"query": "query", "passage": "document"}.items():
        right = theirs.encode(texts, prompt_name=prompt, show_progress_bar=False)
        assert cosines(ours.embed(texts, name), right).min() >= 0.9999


# ---------------------------------------------------------------- limits


def test_an_xlm_roberta_of_514_positions_takes_512_tokens(xlmr_encoder: Path) -> None:
    assert find(xlmr_encoder, pooling="mean").max_tokens == 512
    message = refused(xlmr_encoder, pooling="mean", max_tokens=513)
    assert "513 is above the 512 positions" in message
    vectors = Encoder(EncoderSettings(path=str(xlmr_encoder), pooling="mean")).embed(texts_of(999))
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize(("says", "gives"), [(256, 256), (10**30, 1_024), ("absent", 1_024)])
def test_the_tokenizers_limit_counts_where_nothing_else_says_one(
    bare_encoder: Path, copy: Copy, says: Any, gives: int
) -> None:
    folder = copy(bare_encoder, tokenizer_config={"model_max_length": says})
    assert find(folder, pooling="mean").max_tokens == gives


# ---------------------------------------------------------------- the fingerprint


def test_the_fingerprint_is_the_same_under_another_name_dtype_device_or_budget(
    tiny_encoder: Path, copy: Copy
) -> None:
    digest = find(tiny_encoder).fingerprint["digest"]
    same = find(
        copy(tiny_encoder, "other-name"), dtype="bfloat16", device="cpu", token_budget=9_999
    )
    assert same.fingerprint["digest"] == digest
    assert find(tiny_encoder, prefix="结果: ").fingerprint["digest"] == digest
    assert find(tiny_encoder, query_prefix="别: ").fingerprint["digest"] == digest


def test_the_fingerprint_changes_with_all_that_vectors_depend_on(
    tiny_encoder: Path, copy: Copy
) -> None:
    spec = find(tiny_encoder)
    weights = copy(tiny_encoder, "weights")
    tensors = load_file(weights / "model.safetensors")
    next(iter(tensors.values())).flatten()[0] += 1e-3
    save_file(tensors, weights / "model.safetensors", metadata={"format": "pt"})
    tokenizer = copy(tiny_encoder, "tokenizer")
    with (tokenizer / "tokenizer.json").open("a", encoding="utf-8") as file:
        file.write("\n")
    others = {
        "weights": find(weights),
        "tokenizer": find(tokenizer),
        "tokenizer's config": find(copy(tiny_encoder, "c", tokenizer_config={"strip_accents": 1})),
        "pooling": find(tiny_encoder, pooling="cls"),
        "prefix": find(tiny_encoder, prefix="query"),
        "no prefix": find(tiny_encoder, prefix="none"),
        "the passage's prefix": find(tiny_encoder, passage_prefix="别: "),
        "max_tokens": find(tiny_encoder, max_tokens=512),
        "revision": replace(spec, revision="abc"),
    }
    digests = [spec.fingerprint["digest"], *(o.fingerprint["digest"] for o in others.values())]
    assert len(set(digests)) == len(digests)
