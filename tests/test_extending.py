"""docs/extending.md does what it says: its pieces of code, in a copy of the project, run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stella_ray.encode.encoder import Encoder
from tests.conftest import HAN, make_encoder
from tests.jobs.conftest import rows_of

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
PIECE = re.compile(r"`(stella_ray/[a-z_/]+\.py)`[:,]\n\n```(diff|python)\n(.*?)```", re.DOTALL)
PIECES = PIECE.findall(PAGE)


def with_pieces(source: Path) -> None:
    """Put the page's pieces into a copy; a diff's added lines go behind the line above them."""
    for name, kind, code in PIECES:
        file = source / name
        if kind == "python":
            assert not file.exists()
            file.write_text(code, encoding="utf-8")
            continue
        text = file.read_text(encoding="utf-8")
        for above, added in re.findall(r"^ (.*)\n((?:\+.*\n)+)", code, re.MULTILINE):
            assert text.count(f"\n{above}\n") == 1, f"{name} has no such line, or several: {above}"
            new = "".join(line[1:] for line in added.splitlines(keepends=True))
            text = text.replace(f"\n{above}\n", f"\n{above}\n{new}")
        file.write_text(text, encoding="utf-8")


def modernbert(folder: Path) -> Path:
    """A small ModernBERT of random weights, with windows of 16 tokens in most layers."""
    import torch
    from transformers import ModernBertConfig, ModernBertModel

    make_encoder(folder, pooling=None)  # for its tokenizer
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=len(HAN) + 200, hidden_size=32, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=1_024, local_attention=32, pad_token_id=0,
        cls_token_id=2, bos_token_id=2, sep_token_id=3, eos_token_id=3, initializer_range=0.2,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ModernBertModel(config).save_pretrained(folder)
    return folder


def test_each_addition_is_short_and_touches_two_files_at_most() -> None:
    assert {name for name, _, _ in PIECES} == {
        "stella_ray/encode/models.py",
        "stella_ray/pipeline/arrow_files.py",
        "stella_ray/pipeline/formats.py",
    }
    added = [
        line
        for name, kind, code in PIECES
        for line in code.splitlines()
        if "pipeline" in name and (kind == "python" or line.startswith("+"))
    ]
    assert 30 < len(added) < 60


def test_modernbert_has_the_vectors_of_transformers_own_forward(tmp_path: Path) -> None:
    from stella_ray.encode.models import EncoderSettings

    encoder = Encoder(EncoderSettings(path=str(modernbert(tmp_path)), pooling="mean"))
    texts = ["".join(HAN[i : i + n]) for i, n in enumerate((1, 900, 40, 7, 300))]
    plain = encoder.reference(encoder.tokenizer(texts))
    found = encoder.embed(texts, prefix="none")
    assert np.einsum("rd,rd->r", found, plain).min() > 0.9999


def test_packed_attention_refuses_a_sliding_window() -> None:
    import torch

    from stella_ray.encode.attention import packed_attention

    some = torch.zeros(1, 2, 4, 8)
    starts = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="no sliding window"):
        packed_attention(
            torch.nn.Identity(), some, some, some, None, cu_seq_lens_q=starts, sliding_window=16
        )


@pytest.mark.ray
def test_the_new_format_and_the_new_encoder_make_a_table(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("stella_ray", "jobs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    with_pieces(source)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = pa.table(
        {
            "id": [f"{i}" for i in range(50)],
            "text": pa.array([HAN[i] * (i + 1) for i in range(50)]).dictionary_encode(),
            "year": pa.array(range(2000, 2050), pa.int16()),
        }
    )
    with pa.ipc.new_file(corpus / "a.arrow", rows.schema) as file:
        file.write_table(rows, max_chunksize=20)
    # The name is that of the page's entry, which the folder itself says nothing about.
    words = [
        "--corpus", corpus, "--table", tmp_path / "db/docs", "--keep_columns", "year",
        "--encoder.path", modernbert(tmp_path / "our-modernbert-zh"), "--pool.encoders", "1",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "jobs/embed.py", *map(str, words)],
        cwd=source, env=os.environ | {"PYTHONPATH": str(source), "RAY_ADDRESS": "local"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = rows_of(tmp_path / "db/docs")
    assert {name: row["year"] for name, row in found.items()} == {
        f"{i}": 2000 + i for i in range(50)
    }
