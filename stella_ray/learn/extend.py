"""A model folder with more positions than the one it is made from."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stella_ray.encode.attention import PACKABLE
from stella_ray.encode.models import EncoderSpec
from stella_ray.errors import ModelError
from stella_ray.learn.folders import (
    change_json,
    complete,
    copy_folder,
    new_folder,
    read_json,
    read_tensors,
    set_max_tokens,
    write_json,
    write_tensors,
)
from stella_ray.learn.positions import check_extension, extend_positions

log = logging.getLogger(__name__)

POSITIONS = "embeddings.position_embeddings.weight"
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
"""Counters that older folders store beside the weights, one entry a position."""


def first_position(spec: EncoderSpec) -> int:
    """The row of a text's first token: 0, or pad + 1 in RoBERTa and XLM-R.

    Raises:
        ModelError: an architecture whose positions aren't rows of a table, or aren't known here.
    """
    config = read_json(Path(spec.folder) / "config.json")
    kind = config.get("position_embedding_type") or "absolute"
    if spec.model_type not in PACKABLE or kind != "absolute":
        raise ModelError(
            f"{spec.name}: a {spec.model_type} with {kind} positions can't be extended; expected"
            f" {', '.join(PACKABLE)} with absolute ones"
        )
    return 0 if spec.model_type == "bert" else int(config.get("pad_token_id", 1)) + 1


def trained_positions(spec: EncoderSpec) -> int:
    """Tokens of the longest text that the model has positions for.

    Raises:
        ModelError: see `first_position`.
    """
    config = read_json(Path(spec.folder) / "config.json")
    return int(config["max_position_embeddings"]) - first_position(spec)


def extend_model(
    spec: EncoderSpec, out: str, positions: int, alpha: float, *, pooling_asked: bool = False
) -> Path:
    """Write the encoder with `positions` positions to the folder `out`; all else stays as it is.

    1. Copy the folder. 2. Extend the table of positions in its safetensors, whose trained rows
    stay bit by bit. 3. Raise the limits in config, tokenizer and sentence-transformers files.
    4. Write down where it came from. 5. Put it in its place.

    Args:
        spec: the encoder.
        out: a folder that isn't there, or is empty.
        positions: tokens of the longest text from now on.
        alpha: see `positions.extend_positions`.
        pooling_asked: see `folders.complete`.

    Raises:
        SettingsError: positions or alpha can't hold, or `out` is taken.
        ModelError: the encoder can't be extended, or `out` can't be written.
    """
    wanted = _Extension(first_position(spec), trained_positions(spec), positions, alpha)
    check_extension(wanted.trained, positions, alpha)
    with new_folder(out) as made:
        if left := copy_folder(Path(spec.folder), made):
            log.warning("left out, since they hold the old positions: %s", ", ".join(left))
        _extend_weights(made, wanted, spec.name)
        change_json(made / "config.json", max_position_embeddings=wanted.first + positions)
        set_max_tokens(made, positions)
        complete(made, spec, pooling_asked=pooling_asked)
        told = {"from": spec.name, "weights": spec.fingerprint["weights"]}
        steps = {"positions": [wanted.trained, positions], "alpha": alpha}
        write_json(made / "extension.json", {**told, "method": "hierarchical", **steps})
    return Path(out).expanduser().absolute()


@dataclass(frozen=True)
class _Extension:
    """What is asked: from row `first` on, `trained` rows become `positions`."""

    first: int
    trained: int
    positions: int
    alpha: float

    @property
    def rows(self) -> int:
        """Of the table as it is."""
        return self.first + self.trained


def _extend_weights(made: Path, wanted: _Extension, model: str) -> None:
    """Rewrite each safetensors file that holds positions."""
    found = 0
    for path in sorted(made.glob("*.safetensors")):
        tensors, metadata = read_tensors(path)
        changed = {}
        for name, old in tensors.items():
            new = _extended(name, old, wanted, f"{model}: {path.name}")
            if new is not None:
                changed[name] = new
        if changed:
            found += any(name.endswith(POSITIONS) for name in changed)
            more_bytes = sum(new.nbytes - tensors[name].nbytes for name, new in changed.items())
            write_tensors(path, tensors | changed, metadata)
            _grow_index(made, more_bytes)
    if not found:
        raise ModelError(
            f"{model}: no tensor …{POSITIONS} in its .safetensors files; expected one to extend"
        )


def _extended(name: str, old: Tensor, wanted: _Extension, where: str) -> Tensor | None:
    """The tensor with more positions; None if it has nothing to do with them."""
    if name.endswith(POSITIONS):
        if len(old) != wanted.rows or not old.is_floating_point():
            raise ModelError(
                f"{where}: {name} is {old.dtype} {list(old.shape)}; expected {wanted.rows} rows of"
                " floating-point numbers, as config.json says"
            )
        longer = extend_positions(old[wanted.first :], wanted.positions, wanted.alpha)
        return torch.cat([old[: wanted.first], longer])
    if name.endswith(BUFFERS) and old.shape[-1] == wanted.rows:
        counted = torch.arange(wanted.first + wanted.positions, dtype=old.dtype)
        new = counted if name.endswith("position_ids") else torch.zeros_like(counted)
        return new.expand(*old.shape[:-1], -1).contiguous()
    return None


def _grow_index(made: Path, more_bytes: int) -> None:
    """Raise the total that the index of sharded weights gives."""
    path = made / "model.safetensors.index.json"
    if path.exists():
        metadata = read_json(path).get("metadata") or {}
        metadata["total_size"] = metadata.get("total_size", 0) + more_bytes
        change_json(path, metadata=metadata)
