"""The encoder as it learns: the same files, tokenizer, cutter and forward pass, with gradients.

Legend: B rows, D numbers of a vector.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stella_ray.encode.attention import PACKABLE
from stella_ray.encode.batching import batches
from stella_ray.encode.forward import PackedForward, PaddedForward
from stella_ray.encode.loading import find_device, load_model
from stella_ray.encode.models import EncoderSpec
from stella_ray.encode.tokens import Ragged, TextTokenizer
from stella_ray.errors import ModelError, SettingsError
from stella_ray.learn.dropout import use_keyed_dropout
from stella_ray.learn.folders import (
    complete,
    copy_folder,
    new_folder,
    read_tensors,
    write_json,
    write_tensors,
)
from stella_ray.learn.recipe import ComputeSettings

log = logging.getLogger(__name__)

CPU_TOKEN_BYTES, CUDA_TOKEN_BYTES = 80, 60
"""Activations that a token's graph holds, a layer and hidden feature: some 20 float32 numbers
(queries, keys, values, both sides of two norms, eight of the feed-forward's), by autocast fewer."""
CPU_GRAPH_BYTES, CUDA_GRAPH_SHARE = 4 << 30, 0.4
"""What graphs may take where the settings don't say; weights and AdamW take four times the model's
size besides."""


class Trainee:
    """An encoder whose weights learn: float32, whatever the passes compute in.

    Args:
        spec: the encoder.
        settings: how it runs.
        dropout: the share dropped behind each layer; None: as the model's config says.

    Raises:
        ModelError: no kind of model that can be trained here, or its weights can't be loaded.
        SettingsError: the device can't do what the settings ask for.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        settings: ComputeSettings = ComputeSettings(),
        dropout: float | None = None,
    ) -> None:
        if spec.model_type not in PACKABLE:
            raise ModelError(
                f"{spec.name}: a {spec.model_type} can't be trained here; expected one of"
                f" {', '.join(PACKABLE)}"
            )
        self.spec, self.settings = spec, settings
        self.device = find_device(settings.device)
        cuda = self.device.type == "cuda"
        half = settings.dtype == "bfloat16" or (settings.dtype == "auto" and cuda)
        self.autocast = functools.partial(
            torch.autocast, self.device.type, torch.bfloat16, enabled=half
        )
        packed = _packed(settings.implementation, self.device, half)
        self.tokenizer = TextTokenizer(spec.folder, spec.max_tokens)
        self.model = load_model(spec, torch.float32, packed=packed).to(self.device)
        self.keys = use_keyed_dropout(self.model, dropout)
        self.model.train()
        self.parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if settings.gradient_checkpointing:
            old = self.model.gradient_checkpointing_enable  # transformers before 5.21
            getattr(self.model, "activation_checkpointing_enable", old)()
        way = PackedForward if packed else PaddedForward
        self.forward = way(self.model, spec.pooling, torch.float32)
        config = self.model.config
        features = config.num_hidden_layers * config.hidden_size
        auto = _graph_tokens(self.device, features)
        self.graph_tokens = settings.graph_tokens or auto
        auto = min(auto, 32_768 if cuda else self.forward.token_budget)
        self.token_budget = settings.token_budget or max(auto, spec.max_tokens)
        if self.token_budget < spec.max_tokens:
            raise SettingsError(
                f"token_budget {self.token_budget} can't hold a row of max_tokens"
                f" {spec.max_tokens}; raise the one or lower the other"
            )

    def cut(self, rows: Ragged) -> tuple[list[np.ndarray], list[int]]:
        """Batches of row numbers, the dearest first, and the tokens of each, padding included."""
        cut = list(batches(rows.lengths, self.token_budget, packed=self.forward.packed))
        lengths = [rows.lengths[batch] for batch in cut]
        packed = self.forward.packed
        return cut, [int(n.sum() if packed else n.max() * len(n)) for n in lengths]

    def vectors(self, rows: Ragged, batch: np.ndarray, row_keys: np.ndarray) -> Tensor:
        """Some rows' unit vectors, float32 [B, D], with a graph unless it is switched off.

        Args:
            rows: tokens of all rows.
            batch: which of them, longest first.
            row_keys: uint64, of all rows: equal ones drop the same activations.
        """
        ids = [rows.values[rows.offsets[i] : rows.offsets[i + 1]] for i in batch]
        lengths = rows.lengths[batch].tolist()
        self.keys.set(lengths, row_keys[batch], self.device, packed=self.forward.packed)
        with self.autocast():
            pooled_BD = self.forward([one.astype(np.int64) for one in ids])
        return normalize(pooled_BD.float(), dim=-1)

    def save(self, out: str | Path, told: dict[str, object] | None = None) -> Path:
        """Write a model folder: the encoder's own, with these weights in float32.

        Args:
            out: a folder that isn't there, or is empty.
            told: what to note in its training.json.

        Raises:
            SettingsError: `out` is taken.
            ModelError: it can't be written.
        """
        with new_folder(str(out)) as made:
            copy_folder(Path(self.spec.folder), made)
            self._replace_weights(made)
            complete(made, self.spec, pooling_asked=False)
            if told is not None:
                write_json(made / "training.json", told)
        return Path(out).expanduser().absolute()

    def load_weights(self, folder: Path) -> None:
        """Take the weights of a folder that `save` wrote for this encoder."""
        found: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            tensors = read_tensors(path)[0]
            found |= {self._own_name(name) or name: one for name, one in tensors.items()}
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(found[name])

    def _own_name(self, name: str) -> str | None:
        """The parameter that a file may know as "bert.…", too; None where it's none of ours."""
        below = name.partition(".")[2]
        return next((one for one in (name, below) if one in self.parameters), None)

    def _replace_weights(self, made: Path) -> None:
        """Put this model's numbers under the names that the folder's files know them by."""
        learned = {name: p.detach().cpu().contiguous() for name, p in self.parameters.items()}
        placed = set()
        for path in sorted(made.glob("*.safetensors")):
            tensors, metadata = read_tensors(path)
            for name in list(tensors):
                if own := self._own_name(name):
                    tensors[name] = learned[own]
                    placed.add(own)
            write_tensors(path, tensors, metadata)
        if lost := sorted(set(learned) - placed):
            raise ModelError(
                f"{self.spec.folder}: no place for {lost[0]} ({len(lost)} in all) in its"
                " .safetensors files; expected those that the weights were loaded from"
            )


def _graph_tokens(device: torch.device, features: int) -> int:
    """Tokens whose graphs fit into the device's usual share, for layers x hidden features."""
    if device.type != "cuda":
        return CPU_GRAPH_BYTES // (CPU_TOKEN_BYTES * features)
    room = CUDA_GRAPH_SHARE * torch.cuda.get_device_properties(device).total_memory
    return int(room / (CUDA_TOKEN_BYTES * features))


def _packed(asked: str, device: torch.device, half: bool) -> bool:
    """Whether rows are packed.

    Raises:
        SettingsError: they can't be, though asked for.
    """
    can = device.type == "cuda" and half and torch.cuda.get_device_capability(device) >= (8, 0)
    if asked == "packed" and device.type == "cuda" and not can:
        raise SettingsError(
            f"implementation packed needs a GPU of Ampere or later and bfloat16; found {device};"
            " use auto"
        )
    return asked == "packed" or (asked == "auto" and can)
