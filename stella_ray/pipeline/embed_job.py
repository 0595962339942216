"""The settings of jobs/embed.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import SettingsError
from stella_ray.pipeline.cells import CorpusColumns
from stella_ray.pipeline.cluster import PoolSettings
from stella_ray.pipeline.corpus import OnBadShard
from stella_ray.pipeline.estimate import EstimateSettings
from stella_ray.pipeline.settle import Guards
from stella_ray.storage import StorageSettings
from stella_ray.table.gate import GateSettings
from stella_ray.table.index import IndexSettings


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """Embed a sharded corpus into a LanceDB table."""

    corpus: list[str] = field(default_factory=list)
    """Files, folders or globs of shards: parquet, jsonl (.gz, .zst), csv (.gz, .zst)."""
    table: str
    """DIR/NAME: the table NAME of the LanceDB database in DIR."""
    doc_id_column: str = "id"
    """Column of ids, text or integers; an id stands for one document."""
    text_column: str = "text"
    """Column of texts."""
    keep_columns: list[str] = field(default_factory=list)
    """Columns to store beside the vector, as words or separated by commas."""
    store_text: bool = True
    """Whether the table holds the text; searching shows snippets of it."""
    vector_type: Literal["float32", "float16"] = "float32"
    """Numbers of the stored vectors; float16 takes half the space."""
    long: Literal["truncate", "chunk"] = "truncate"
    """Documents beyond the encoder's max_tokens: cut off there, or made several rows of windows."""
    chunk_overlap: int = 64
    """Tokens that neighbouring chunks share, so that what one cuts the other holds whole."""
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    index: IndexSettings = field(default_factory=IndexSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    reread: bool = False
    """Read all shards, even if none has another size or stamp (ETag on S3; times and inode on a
    disk) than when the live version was made of them."""
    rebuild: bool = False
    """Embed everything anew, with any encoder, into a new version; `live` serves on meanwhile."""
    max_delete_fraction: float = 0.2
    """Largest share of the table's documents that a run may delete: a cut listing is no order."""
    max_reject_fraction: float = 0.0
    """Largest share of rows that may be rejected before the run fails."""
    on_bad_shard: OnBadShard = "fail"
    """A shard that is damaged, empty or gone: fail the run, or list it among the rejects and go on;
    nothing is deleted then, because what isn't seen may be in it."""
    on_busy: Literal["wait", "fail"] = "fail"
    """Another run is writing to the table: wait for its end, or stop with exit code 5."""
    lease_seconds: float = 60.0
    """Seconds after which the lock of a dead run on S3 may be taken; it is renewed every third."""
    keep_runs: int = 3
    """Published versions to keep for readers and for jobs/publish.py promote; `live`,
    `live-previous` and tags of your own are kept besides."""
    report: str | None = None
    """Where to write a second copy of report.json."""
    dry_run: bool = False
    """Count what a run would do, its tokens, time and cost, and what it would refuse; write nothing
    (but the estimate to `report`, if that is given)."""
    estimate: EstimateSettings = field(default_factory=EstimateSettings)

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        if self.keep_runs < 1:
            raise SettingsError(f"keep_runs {self.keep_runs} is too small; expected 1 or more")
        if self.lease_seconds < 3:
            raise SettingsError(f"lease_seconds {self.lease_seconds:g} is too short; expected 3 up")
        if self.chunk_overlap < 0:
            raise SettingsError(
                f"chunk_overlap {self.chunk_overlap} is negative; expected 0 or more tokens"
            )
        for name in ("max_delete_fraction", "max_reject_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} {getattr(self, name)} is no share; expected 0 to 1")

    @property
    def guards(self) -> Guards:
        """What a run must not do."""
        return Guards(
            max_delete_fraction=self.max_delete_fraction,
            max_reject_fraction=self.max_reject_fraction,
            gate=self.gate,
        )

    @property
    def columns(self) -> CorpusColumns:
        """The corpus's columns."""
        kept = [name.strip() for item in self.keep_columns for name in item.split(",")]
        return CorpusColumns(
            doc_id=self.doc_id_column,
            text=self.text_column,
            kept=tuple(dict.fromkeys(name for name in kept if name)),
        )
