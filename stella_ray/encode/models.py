"""Which encoder a name means: its files, pooling, prefixes and limits, and its fingerprint.

Read from the model folder's own sentence-transformers files where it has them, else from the table
of known encoders, else from the settings; an explicit setting always wins.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stella_ray.encode.hub import model_folder
from stella_ray.errors import ModelError, SettingsError

Pooling = Literal["mean", "cls"]

BGE_QUERY = "为这个句子生成表示以用于检索相关文章："


@dataclass(frozen=True, kw_only=True)
class KnownEncoder:
    """What a published encoder needs, from its model card."""

    pooling: Pooling
    query_prefix: str
    passage_prefix: str
    max_tokens: int


_STELLA = KnownEncoder(
    pooling="mean", query_prefix="查询: ", passage_prefix="结果: ", max_tokens=1024
)
_PICCOLO = KnownEncoder(
    pooling="mean", query_prefix="查询: ", passage_prefix="结果: ", max_tokens=512
)
_BGE = KnownEncoder(pooling="cls", query_prefix=BGE_QUERY, passage_prefix="", max_tokens=512)

KNOWN_ENCODERS: dict[str, KnownEncoder] = {
    "stella-base-zh": _STELLA,
    "stella-large-zh": _STELLA,
    "piccolo-base-zh": _PICCOLO,
    "piccolo-large-zh": _PICCOLO,
    "bge-base-zh": _BGE,
    "bge-large-zh": _BGE,
    "bge-large-zh-no-instruct": KnownEncoder(
        pooling="cls", query_prefix="", passage_prefix="", max_tokens=512
    ),
    "multilingual-e5-small": KnownEncoder(
        pooling="mean", query_prefix="query: ", passage_prefix="passage: ", max_tokens=512
    ),
}
"""By the last part of the hub id or of the folder's name."""


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Which encoder, and how it runs."""

    path: str = "infgrad/stella-base-zh"
    """A hub id, a local folder, or a bundled name (multilingual-e5-small)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; goes into the fingerprint."""
    prefix: str = "passage"
    """What stands before each text: passage, query, none, or the text itself."""
    max_tokens: int | None = None
    """Longest text in tokens, special ones included; longer are cut. Default: the model's own."""
    pooling: Pooling | None = None
    """How token vectors become one: mean or cls. Default: the model's own."""
    query_prefix: str | None = None
    """What `query` stands for. Default: the model's own."""
    passage_prefix: str | None = None
    """What `passage` stands for. Default: the model's own."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """Numbers of the forward pass; auto: bfloat16 on CUDA (float16 on GPUs before Ampere), float32
    elsewhere. Pooling: float32.
    int8: BERT's kind on a CPU with AVX512 VNNI; 1.3 to 1.6 times as fast, cosine 0.9995 to it."""
    token_budget: int = 0
    """Most tokens in a batch, padding included; 0: on CUDA the fewest with which the GPU works near
    its best rate, found at the start (a second or so), 2,048 on a CPU (its cache)."""
    implementation: Literal["auto", "fused", "packed", "padded"] = "auto"
    """fused: our own kernels; packed: transformers with varlen attention; padded: transformers as
    it comes, any architecture. auto: the first of them that serves this model on this device; on a
    CPU padded, with BERT's layers in fewer steps."""
    device: str = "auto"
    """Where it runs; auto: cuda if there is one, else cpu."""

    def __post_init__(self) -> None:
        """Refuse what can't hold, before a model is looked for."""
        if self.max_tokens is not None and self.max_tokens < 8:
            raise SettingsError(f"max_tokens {self.max_tokens} is too small; expected 8 or more")
        if self.token_budget < 0:
            raise SettingsError(
                f"token_budget {self.token_budget} is negative; expected 0 (auto) or more"
            )
        if self.token_budget and self.max_tokens and self.token_budget < self.max_tokens:
            raise SettingsError(
                f"token_budget {self.token_budget} can't hold a row of max_tokens"
                f" {self.max_tokens}; raise the one or lower the other"
            )


_NO_MATTER = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
"""Keys of config.json that differ between copies of the same encoder."""


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """An encoder found: its folder and everything that its vectors depend on."""

    name: str
    folder: str
    revision: str | None
    pooling: Pooling
    query_prefix: str
    passage_prefix: str
    prefix: str
    max_tokens: int
    dim: int
    model_type: str

    def prefix_text(self, prefix: str) -> str:
        """The text that `passage`, `query`, `none` or a literal stands for."""
        named = {"passage": self.passage_prefix, "query": self.query_prefix, "none": ""}
        return named.get(prefix, prefix)

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What two runs must share to write into one table; `digest` sums it up.

        Neither the folder's name nor device or dtype belongs to it: they don't change the space.
        """
        parts = {
            "weights": _digest(Path(self.folder), "*.safetensors"),
            "config": _config_digest(Path(self.folder)),
            "tokenizer": _digest(
                Path(self.folder), "tokenizer.json", "vocab.txt", "tokenizer_config.json"
            ),
            "revision": self.revision,
            "pooling": self.pooling,
            "prefix": self.prefix_text(self.prefix),
            "max_tokens": self.max_tokens,
            "normalisation": "l2",
        }
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return {"name": self.name, **parts, "digest": digest[:32]}


def _digest(folder: Path, *patterns: str) -> str:
    """SHA-256 over the names and bytes of a folder's files that match."""
    total = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        total.update(path.name.encode())
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                total.update(piece)
    return total.hexdigest()[:32]


def _config_digest(folder: Path) -> str:
    """SHA-256 over what config.json says of the forward pass, not of who wrote it."""
    config = {k: v for k, v in _json(folder / "config.json").items() if k not in _NO_MATTER}
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:32]


def find_encoder(settings: EncoderSettings) -> EncoderSpec:
    """Find the model folder and what its vectors depend on; weights are not loaded.

    Raises:
        ModelError: no such model, or a folder that can't serve as an encoder.
    """
    folder = model_folder(settings.path, settings.revision)
    config = _json(folder / "config.json")
    for need in ("hidden_size", "max_position_embeddings"):
        if need not in config:
            raise ModelError(
                f"{folder}: no {need} in config.json; expected a transformers encoder's folder"
            )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder}: no .safetensors weights; only that format is loaded"
            " (convert with save_pretrained)"
        )
    if not (folder / "tokenizer.json").exists() and not (folder / "vocab.txt").exists():
        raise ModelError(
            f"{folder}: neither tokenizer.json nor vocab.txt; a fast tokenizer is needed"
        )
    known = KNOWN_ENCODERS.get(Path(settings.path.rstrip("/")).name)
    modules = _modules(folder)
    prompts = _json(folder / "config_sentence_transformers.json").get("prompts") or {}
    query = prompts.get("query") or (known.query_prefix if known else "")
    passage = (
        prompts.get("passage") or prompts.get("document") or (known.passage_prefix if known else "")
    )
    return EncoderSpec(
        name=settings.path,
        folder=str(folder),
        revision=settings.revision,
        pooling=settings.pooling or _pooling(folder, modules, known),
        query_prefix=query if settings.query_prefix is None else settings.query_prefix,
        passage_prefix=passage if settings.passage_prefix is None else settings.passage_prefix,
        prefix=settings.prefix,
        max_tokens=_max_tokens(folder, config, known, settings.max_tokens),
        dim=int(config["hidden_size"]),
        model_type=str(config.get("model_type")),
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not readable as JSON ({error})") from None
    return value if isinstance(value, dict) else {"items": value}


def _modules(folder: Path) -> dict[str, Path]:
    """The sentence-transformers modules of a folder: last part of the type's name -> its subfolder.

    Raises:
        ModelError: a module whose work isn't done here.
    """
    found = {}
    for item in _json(folder / "modules.json").get("items", []):
        found[str(item["type"]).rpartition(".")[2]] = folder / item["path"]
    if unknown := set(found) - {"Transformer", "Pooling", "Normalize"}:
        raise ModelError(
            f"{folder}: module {', '.join(sorted(unknown))} in modules.json isn't supported;"
            " expected Transformer, Pooling and Normalize"
        )
    return found


def _pooling(folder: Path, modules: dict[str, Path], known: KnownEncoder | None) -> Pooling:
    if "Pooling" in modules:
        config = _json(modules["Pooling"] / "config.json")
        mode = config.get("pooling_mode") or [
            name.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
            for name, on in config.items()
            if name.startswith("pooling_mode_") and on is True
        ]
        modes = [mode] if isinstance(mode, str) else list(mode)
        if modes not in (["mean"], ["cls"]):
            raise ModelError(f"{folder}: pooling {modes} isn't supported; expected mean or cls")
        if config.get("include_prompt") is False:
            raise ModelError(f"{folder}: include_prompt false isn't supported; expected true")
        return "mean" if modes == ["mean"] else "cls"
    if known:
        return known.pooling
    raise ModelError(
        f"{folder}: no sentence-transformers files and not a known encoder, so the pooling is"
        " unknown; say --encoder.pooling mean or cls"
    )


def _max_tokens(
    folder: Path, config: dict[str, Any], known: KnownEncoder | None, asked: int | None
) -> int:
    positions = int(config["max_position_embeddings"])
    if config.get("model_type") in ("roberta", "xlm-roberta"):  # positions start behind the pad's
        positions -= int(config.get("pad_token_id", 1)) + 1
    own_file = folder / "sentence_bert_config.json"
    own = _json(own_file).get("max_seq_length")
    if own is None and (own_file.exists() or not known):
        # sentence-transformers 6 keeps the limit in the tokenizer's config
        own = _json(folder / "tokenizer_config.json").get("model_max_length")
        own = min(own or positions, positions)
    limit = asked or own or (known.max_tokens if known else positions)
    if limit > positions:
        who = "--encoder.max_tokens" if asked else "the model's own max_tokens"
        raise ModelError(
            f"{who} {limit} is above the {positions} positions of {folder.name};"
            f" give --encoder.max_tokens {positions} or less, or a model with more positions"
        )
    return int(limit)
