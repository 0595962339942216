"""Embed a sharded corpus into a LanceDB table: what is new or changed, and nothing twice.

python jobs/embed.py --corpus CORPUS --table TABLE [--encoder.path ENCODER]

Run again, it embeds only new and changed documents, removes what is gone, and moves the tag `live`
to the new version once everything is checked.
"""

from __future__ import annotations

import datetime
import json
import logging
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
from ray.data import Dataset

from stella_ray import settings
from stella_ray.encode.models import EncoderSettings, EncoderSpec, find_encoder
from stella_ray.errors import SettingsError, StellaError
from stella_ray.pipeline.cells import CorpusColumns
from stella_ray.pipeline.cluster import PoolSettings, cluster, size_pool
from stella_ray.pipeline.corpus import (
    DatasetCorpus,
    OnBadShard,
    ShardedCorpus,
    find_shards,
    look_at,
)
from stella_ray.pipeline.judge import Preparation
from stella_ray.pipeline.kept import kept_fields
from stella_ray.pipeline.report import RejectsFile, RunReport
from stella_ray.pipeline.run import Guards, Run
from stella_ray.pipeline.shards import Shard
from stella_ray.pipeline.unchanged import digest_of, nothing_new, remember
from stella_ray.rows import table_schema
from stella_ray.storage import StorageSettings, absolute
from stella_ray.storage_faults import check_store
from stella_ray.table.gate import GateSettings
from stella_ray.table.index import IndexSettings
from stella_ray.table.lock import TableLock, locked
from stella_ray.table.opening import LONG, open_for_run
from stella_ray.table.vectors import VectorTable, table_uri

log = logging.getLogger("stella_ray.embed")


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
    def columns(self) -> CorpusColumns:
        """The corpus's columns."""
        kept = [name.strip() for item in self.keep_columns for name in item.split(",")]
        return CorpusColumns(
            doc_id=self.doc_id_column,
            text=self.text_column,
            kept=tuple(dict.fromkeys(name for name in kept if name)),
        )


def run(job: EmbedJob, dataset: Dataset | None = None, seconds_before: float = 0.0) -> RunReport:
    """Find encoder, rows and table; then embed on the cluster; then publish.

    Args:
        job: the settings.
        dataset: rows to embed instead of the shards of `job.corpus`.
        seconds_before: what the job has taken so far, for the report.
    """
    began = datetime.datetime.now(datetime.timezone.utc)
    if not job.corpus and dataset is None:
        raise SettingsError("--corpus is missing; give files, folders or globs of shards")
    check_paths(job)
    job = replace(job, storage=job.storage.resolved())
    uri = table_uri(absolute(job.table))
    check_store(uri, job.storage)
    rows = find_shards(job.corpus, job.storage) if dataset is None else dataset
    spec = find_encoder(job.encoder)
    if job.long == "chunk" and job.chunk_overlap * 4 > spec.max_tokens:
        raise SettingsError(
            f"chunk_overlap {job.chunk_overlap} is more than a quarter of max_tokens"
            f" {spec.max_tokens}; lower the one or raise the other"
        )
    run_id = f"{began:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    report = RunReport(run_id, uri, spec.fingerprint, settings.shown(job))
    report.began = began.timestamp() - seconds_before
    folder = f"{uri.rpartition('/')[0]}/runs/{run_id}"
    places = [f"{folder}/report.json", *([absolute(job.report)] if job.report else [])]
    lock = locked(
        uri,
        holder=f"run {run_id}",
        storage=job.storage,
        on_busy=job.on_busy,
        lease_seconds=job.lease_seconds,
    )
    with lock as held:
        try:
            with report.stage("total"), RejectsFile(f"{folder}/rejects.jsonl", job.storage) as bad:
                embed(job, rows, spec, report, held, bad)
        except StellaError as error:
            report.outcome = f"{type(error).__name__}: {error}"
            raise
        finally:
            report.save(*places, storage=job.storage)
    print(report)
    print(f"report: {places[0]}")
    return report


def embed(
    job: EmbedJob,
    rows: list[Shard] | Dataset,
    spec: EncoderSpec,
    report: RunReport,
    lock: TableLock,
    rejects: RejectsFile,
) -> None:
    """What is done while the table is ours alone."""
    there = VectorTable.open_if_there(report.table, job.storage)
    known_columns = there.dataset.schema if there is not None and not job.rebuild else None
    reject = job.on_bad_shard == "reject"
    kept = kept_fields(rows, job.columns, known_columns, job.storage, reject=reject)
    if not isinstance(rows, Dataset):
        look_at(rows, job.columns, kept, job.storage, reject=reject)
    encoder = {**spec.fingerprint, "open": how_to_open(job.encoder)}
    table = open_for_run(
        report.table,
        there,
        schema_of(job, kept, spec),
        encoder,
        rebuild=job.rebuild,
        storage=job.storage,
    )
    table.run_id = report.run_id
    digest = None if isinstance(rows, Dataset) else digest_of(rows, what_rows_depend_on(job, table))
    if not job.reread and not job.rebuild and nothing_new(table, digest, report):
        log.info("no shard has changed since version %s was made of them", table.version)
        return
    with cluster():
        pool = size_pool(job.pool)
        report.pool, report.encoders = str(pool), pool.encoders
        log.info("run %s: %s", report.run_id, pool)
        Run(
            corpus=as_corpus(rows, job, kept),
            table=table,
            how=Preparation(
                kept=tuple(kept),
                store_text=job.store_text,
                spec=spec,
                digest=encoder["digest"],
                chunk_overlap=job.chunk_overlap if job.long == "chunk" else None,
            ),
            encoder=job.encoder,
            settings=job.pool,
            pool=pool,
            guards=Guards(
                max_delete_fraction=job.max_delete_fraction,
                max_reject_fraction=job.max_reject_fraction,
                gate=job.gate,
            ),
            index=job.index,
            keep_runs=job.keep_runs,
            lock=lock,
            report=report,
            rejects=rejects,
        ).execute()
    remember(table, digest, report)


def what_rows_depend_on(job: EmbedJob, table: VectorTable) -> dict[str, object]:
    """All that decides, beside the shards, what a run makes of them."""
    own = ("long", "chunk_overlap", "index", "gate", "columns")
    return {
        "encoder": table.encoder(),
        "schema": table.dataset.schema.to_string(),
        **{name: str(getattr(job, name)) for name in own},
    }


def schema_of(job: EmbedJob, kept: list[pa.Field], spec: EncoderSpec) -> pa.Schema:
    """The table's schema, which remembers how long documents became rows."""
    chunked = job.long == "chunk"
    schema = table_schema(
        kept, job.store_text, spec.dim, pa.type_for_alias(job.vector_type), chunked=chunked
    )
    how = {"long": "chunk", "overlap": job.chunk_overlap}
    return schema.with_metadata({LONG: json.dumps(how)}) if chunked else schema


def as_corpus(
    rows: list[Shard] | Dataset, job: EmbedJob, kept: list[pa.Field]
) -> ShardedCorpus | DatasetCorpus:
    """Shards or a dataset as what a run reads."""
    if isinstance(rows, Dataset):
        return DatasetCorpus(rows, job.columns, kept)
    log.info("%s shards, %s bytes", f"{len(rows):,}", f"{sum(s.bytes for s in rows):,}")
    return ShardedCorpus(rows, job.columns, kept, job.storage, job.on_bad_shard)


def check_paths(job: EmbedJob) -> None:
    """Refuse relative paths where the job was submitted to a cluster."""
    for place in job.corpus:
        settings.refuse_relative(corpus=place)
    settings.refuse_relative(table=job.table, report=job.report)
    if job.encoder.path.startswith("."):
        settings.refuse_relative(**{"encoder.path": job.encoder.path})


def how_to_open(encoder: EncoderSettings) -> dict[str, object]:
    """What the table remembers, so that a search opens the same encoder again."""
    path = encoder.path
    if Path(path).expanduser().is_dir():
        path = absolute(path)
    names = ("revision", "prefix", "max_tokens", "pooling", "query_prefix", "passage_prefix")
    asked = {name: getattr(encoder, name) for name in names}
    return {"path": path, **{name: value for name, value in asked.items() if value is not None}}


def main() -> None:
    """Read the settings first: a typo costs nothing."""
    job = settings.read_settings(EmbedJob, about=(__doc__ or "").split("\n\n")[0])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for chatty in ("botocore", "aiobotocore", "s3fs"):  # they tell where they found credentials
        logging.getLogger(chatty).setLevel(logging.WARNING)
    log.info("settings: %s", settings.shown(job))
    run(job, seconds_before=settings.process_age())


if __name__ == "__main__":
    settings.run_job(main)
