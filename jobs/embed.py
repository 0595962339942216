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
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import ray

from stella_ray import settings
from stella_ray.encode.models import EncoderSettings, EncoderSpec, find_encoder
from stella_ray.errors import IncompleteRun, SettingsError, StellaError
from stella_ray.pipeline.cluster import cluster, configure_data, size_pool
from stella_ray.pipeline.corpus import DatasetCorpus, ShardedCorpus, find_shards, look_at
from stella_ray.pipeline.embed_job import EmbedJob
from stella_ray.pipeline.estimate import Estimate
from stella_ray.pipeline.forecast import estimate
from stella_ray.pipeline.judge import Preparation
from stella_ray.pipeline.kept import kept_fields
from stella_ray.pipeline.rates import rate_for
from stella_ray.pipeline.rejects import RejectsFile
from stella_ray.pipeline.report import RunReport
from stella_ray.pipeline.run import Run
from stella_ray.pipeline.run_files import page_beside, save
from stella_ray.pipeline.shards import Shard
from stella_ray.pipeline.unchanged import digest_of, nothing_new, remember
from stella_ray.rows import table_schema
from stella_ray.storage import absolute, write_json
from stella_ray.storage_faults import check_store, table_folder
from stella_ray.table.lock import TableLock, locked
from stella_ray.table.opening import LONG, known_at_start, open_for_run, where_to_start
from stella_ray.table.vectors import VectorTable, table_uri

log = logging.getLogger("stella_ray.embed")


def run(
    job: EmbedJob, dataset: ray.data.Dataset | None = None, seconds_before: float = 0.0
) -> RunReport:
    """Find encoder, rows and table; then embed on the cluster; then publish.

    Args:
        job: the settings.
        dataset: rows to embed instead of the shards of `job.corpus`.
        seconds_before: what the job has taken so far, for the report.
    """
    began = datetime.datetime.now(datetime.timezone.utc)
    job, uri, rows, spec = found(job, dataset)
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
            save(report, places, job.estimate, spec, job.storage)
    print(report)
    print(f"report: {places[0]}, and to read {page_beside(places[0])}")
    return report


def found(
    job: EmbedJob, dataset: ray.data.Dataset | None = None
) -> tuple[EmbedJob, str, list[Shard] | ray.data.Dataset, EncoderSpec]:
    """The job with its storage's settings filled in, the table's URI, the rows and the encoder."""
    if not job.corpus and dataset is None:
        raise SettingsError("--corpus is missing; give files, folders or globs of shards")
    check_paths(job)
    job = replace(job, storage=job.storage.resolved())
    uri = table_uri(absolute(job.table))
    if job.dry_run:
        table_folder(uri)  # refuses what is neither a disk nor S3
    else:
        check_store(uri, job.storage)
    rows = find_shards(job.corpus, job.storage) if dataset is None else dataset
    spec = find_encoder(job.encoder)
    if job.long == "chunk" and job.chunk_overlap * 4 > spec.max_tokens:
        raise SettingsError(
            f"chunk_overlap {job.chunk_overlap} is more than a quarter of max_tokens"
            f" {spec.max_tokens}; lower the one or raise the other"
        )
    return job, uri, rows, spec


def embed(
    job: EmbedJob,
    rows: list[Shard] | ray.data.Dataset,
    spec: EncoderSpec,
    report: RunReport,
    lock: TableLock,
    rejects: RejectsFile,
) -> None:
    """What is done while the table is ours alone."""
    there = VectorTable.open_if_there(report.table, job.storage)
    kept = look(job, rows, there)
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
    digest = digest_of(rows, what_rows_depend_on(job, table)) if isinstance(rows, list) else None
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
            how=preparation(job, kept, spec),
            encoder=job.encoder,
            settings=job.pool,
            pool=pool,
            guards=job.guards,
            index=job.index,
            keep_runs=job.keep_runs,
            lock=lock,
            report=report,
            rejects=rejects,
        ).execute()
    remember(table, digest, report)


def look(
    job: EmbedJob, rows: list[Shard] | ray.data.Dataset, there: VectorTable | None
) -> list[pa.Field]:
    """The types of the kept columns; a wrong column is found at once."""
    known_columns = there.dataset.schema if there is not None and not job.rebuild else None
    reject = job.on_bad_shard == "reject"
    kept = kept_fields(rows, job.columns, known_columns, job.storage, reject=reject)
    if isinstance(rows, list):
        look_at(rows, job.columns, kept, job.storage, reject=reject)
    return kept


def preparation(job: EmbedJob, kept: list[pa.Field], spec: EncoderSpec) -> Preparation:
    """How rows are keyed and tokenised."""
    return Preparation(
        kept=tuple(kept),
        store_text=job.store_text,
        spec=spec,
        digest=spec.fingerprint["digest"],
        chunk_overlap=job.chunk_overlap if job.long == "chunk" else None,
    )


def dry_run(job: EmbedJob) -> Estimate:
    """Count and print what the run of a job with `dry_run` would do; writes nothing, needs no lock.

    Raises:
        IncompleteRun: it would be refused.
        StellaError: what the run would raise at once.
    """
    job, uri, shards, spec = found(job)
    there = VectorTable.open_if_there(uri, job.storage)
    kept = look(job, shards, there)
    schema = schema_of(job, kept, spec)
    start = where_to_start(
        uri, there, schema, spec.fingerprint, rebuild=job.rebuild, storage=job.storage
    )
    known = known_at_start(uri, there, start, schema, job.storage)
    corpus = as_corpus(shards, job, kept)
    assert isinstance(corpus, ShardedCorpus), "shards are a sharded corpus; this is a bug"
    with cluster():
        pool = size_pool(job.pool)
        configure_data(pool, ray.data.DataContext.get_current())
        how = preparation(job, kept, spec)
        counted = estimate(corpus, how, pool, known, job.guards, schema, job.estimate.share)
    rate = rate_for(job.estimate, spec, pool, counted, uri, job.storage)
    counted.at(rate, job.estimate)
    print(counted)
    if job.report:
        write_json(absolute(job.report), counted.to_json(), job.storage)
    if counted.refused:
        raise IncompleteRun(f"the run would end with: {counted.refused}")
    return counted


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
    rows: list[Shard] | ray.data.Dataset, job: EmbedJob, kept: list[pa.Field]
) -> ShardedCorpus | DatasetCorpus:
    """Shards or a dataset as what a run reads."""
    if not isinstance(rows, list):
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
    if job.dry_run:
        dry_run(job)
    else:
        run(job, seconds_before=settings.process_age())


if __name__ == "__main__":
    settings.run_job(main)
