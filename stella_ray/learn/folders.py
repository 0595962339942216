"""Model folders made from others: written beside their place, there whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from stella_ray.encode.models import EncoderSpec
from stella_ray.errors import ModelError, SettingsError, StellaError

if TYPE_CHECKING:
    from torch import Tensor

OTHER_WEIGHTS = (
    *("*.bin", "*.h5", "*.msgpack", "*.ot", "*.onnx", "onnx", "openvino"),
    *(".git", ".cache"),  # a clone's history, and the hub's notes on what it downloaded
)
"""The same weights in formats that aren't rewritten here: left out, they'd be the old ones."""

_MODULES = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}


def local_folder(out: str) -> Path:
    """The folder that `out` names, there or not.

    Raises:
        SettingsError: it isn't on a disk, or is a file.
    """
    if "://" in out:
        raise SettingsError(
            f"--out {out}: expected a path on a disk; on a cluster on one that all nodes share"
        )
    folder = Path(out).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--out {folder} is a file; expected a folder")
    return folder


def check_vacant(out: str) -> Path:
    """The local folder that `out` names, which must not be there yet, or be empty.

    Raises:
        SettingsError: it's taken, or isn't local.
    """
    folder = local_folder(out)
    if folder.is_dir() and any(folder.iterdir()):
        raise SettingsError(f"--out {folder} is there and isn't empty; name another or remove it")
    return folder


@contextmanager
def new_folder(out: str, failure: type[StellaError] = ModelError) -> Iterator[Path]:
    """A folder beside `out` to write into, which becomes `out` if all goes well and else goes.

    On S3 pipeline/whole.py does the same.

    Raises:
        SettingsError: `out` is taken.
        failure: it can't be written.
    """
    folder = check_vacant(out)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A sibling, so that the rename stays on one file system.
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            yield made
            made.replace(folder)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise failure(
            f"--out {folder} can't be written ({reason}); check room and rights"
        ) from None


def copy_folder(source: Path, made: Path) -> list[str]:
    """Copy a model folder but for `OTHER_WEIGHTS`; returns the names of weights left out.

    Links (the hub's cache is made of them) become files, and all can be written to.

    Raises:
        SettingsError: it would be copied into itself.
    """
    if source.resolve() in made.resolve().parents:
        raise SettingsError(f"--out lies inside of {source}, the model; expected another place")
    shutil.copytree(
        source,
        made,
        copy_function=shutil.copyfile,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns(*OTHER_WEIGHTS),
    )
    for folder in [made, *(path for path in made.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)
    left = [path.name for pattern in OTHER_WEIGHTS[:-2] for path in source.glob(pattern)]
    return sorted(left)


def change_json(path: Path, **values: Any) -> None:
    """Set keys of a JSON file, made where there is none; the others stay in their order."""
    write_json(path, {**(read_json(path) or {}), **values})


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is none.

    Raises:
        ModelError: it's damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError as error:
        raise ModelError(f"{path.name}: not readable as JSON ({error})") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as the hub's libraries do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file's tensors and metadata.

    Raises:
        ModelError: it's damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: damaged safetensors file ({error})") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file in a file's usual mode; safetensors makes it its owner's alone."""
    from safetensors.torch import save_file  # which imports torch, and jobs have a --help

    save_file(tensors, path, metadata=metadata)
    path.chmod(0o644)


def complete(made: Path, spec: EncoderSpec, *, pooling_asked: bool) -> None:
    """Write into a folder what was known of the encoder by its name, or by settings, alone.

    The folder will have another name, by which the table of known encoders knows nothing.

    Args:
        made: a copy of the encoder's folder.
        spec: the encoder.
        pooling_asked: whether the pooling is a setting that goes before the folder's own.
    """
    modules = read_json(made / "modules.json") or []
    if pooling_asked or not any(module["type"].endswith(".Pooling") for module in modules):
        write_json(
            made / "modules.json",
            [
                {
                    "idx": i,
                    "name": str(i),
                    "path": path,
                    "type": f"sentence_transformers.models.{k}",
                }
                for i, (path, k) in enumerate(_MODULES.items())
            ],
        )
        pooling = {
            "word_embedding_dimension": spec.dim,
            "pooling_mode_cls_token": spec.pooling == "cls",
            "pooling_mode_mean_tokens": spec.pooling == "mean",
        }
        write_json(made / "1_Pooling/config.json", pooling)
        write_json(made / "2_Normalize/config.json", {})
    own = made / "config_sentence_transformers.json"
    prompts = (read_json(own) or {}).get("prompts")
    if not prompts and (spec.query_prefix or spec.passage_prefix):
        prompts = {"query": spec.query_prefix, "passage": spec.passage_prefix}
        change_json(own, prompts={**prompts, "document": spec.passage_prefix})


def set_max_tokens(made: Path, tokens: int) -> None:
    """Set the longest text that tokenizer and sentence-transformers let through."""
    change_json(made / "tokenizer_config.json", model_max_length=tokens)
    own = made / "sentence_bert_config.json"
    if not own.exists():
        write_json(own, {"max_seq_length": tokens, "do_lower_case": False})
    elif "max_seq_length" in read_json(own):
        change_json(own, max_seq_length=tokens)
    tokenizer = read_json(made / "tokenizer.json")
    if tokenizer and tokenizer.get("truncation"):
        tokenizer["truncation"]["max_length"] = tokens
        write_json(made / "tokenizer.json", tokenizer)
