"""Find hard negatives for pairs of queries and passages, by words (BM25) and by vectors.

python jobs/mine.py --pairs train.jsonl --out mined [--corpus 'passages/*.parquet']
    [--methods bm25,vector --table TABLE --encoder.path ENCODER] [--negatives 8]
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from stella_ray import settings
from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.errors import ModelMismatch, SettingsError, TableError, stella_error_in
from stella_ray.learn.examples import open_examples
from stella_ray.learn.mined import OUT, Pairs
from stella_ray.learn.negatives import FilterSettings, Order
from stella_ray.learn.sources import ExampleSource
from stella_ray.pipeline.candidates import Candidates, corpus_candidates, pair_candidates
from stella_ray.pipeline.cells import CorpusColumns
from stella_ray.pipeline.cluster import Pool, PoolSettings, cluster, configure_data, size_pool
from stella_ray.pipeline.corpus import ShardedCorpus, find_shards, look_at
from stella_ray.pipeline.mine import Method, Mining, Rules
from stella_ray.pipeline.report import package_versions
from stella_ray.pipeline.whole import check_vacant, whole_folder
from stella_ray.storage import StorageSettings, absolute
from stella_ray.table.opening import differing_parts
from stella_ray.table.publish import LIVE
from stella_ray.table.search import open_live
from stella_ray.table.vectors import VectorTable, table_uri

log = logging.getLogger("stella_ray.mine")

METHODS: tuple[Method, ...] = ("bm25", "vector")


@dataclass(frozen=True, kw_only=True)
class MineJob:
    """Find hard negatives for pairs."""

    pairs: list[str]
    """Files, folders or globs of pairs: parquet, jsonl or csv (the last two also .gz, .zst)."""
    query_column: str = "query"
    """Column of queries; all passages of equal ones (NFKC, without spaces) are their positives."""
    passage_column: str = "passage"
    """Column of passages that answer them."""
    negatives_column: str | None = None
    """Column of negatives that are there already, a list of texts. Default: none are read."""
    given: Literal["keep", "drop"] = "keep"
    """Those stay in front and count towards --negatives, but for positives of the query; or go."""
    corpus: list[str] = field(default_factory=list)
    """bm25: what negatives are taken from; files, folders or globs of shards, as jobs/embed.py
    reads them. Default: the pairs' own passages."""
    doc_id_column: str = "id"
    """The corpus's column of ids."""
    text_column: str = "text"
    """The corpus's column of texts."""
    table: str | None = None
    """vector: DIR/NAME, what negatives are taken from; jobs/embed.py makes it, with the same
    encoder."""
    out: str
    """Folder of parquet files to write, on a disk or S3; must not be there yet, or be empty."""
    methods: list[str] = field(default_factory=lambda: ["bm25"])
    """bm25: passages that share the query's words; vector: those that the encoder takes for near.
    They take turns, in this order."""
    negatives: int = 8
    """Negatives of a pair, of all methods together; fewer where the filters leave fewer."""
    pick: Order = "random"
    """random: any of the rank window, as FlagEmbedding draws them; first: from its best on."""
    seed: int = 0
    """Of the random picks, and of nothing else."""
    search: Literal["exact", "index"] = "exact"
    """vector: read all vectors for each window of queries, or ask the table's vector index."""
    queries_at_once: int = 32_768
    """Pairs of a window; the corpus is scored once for each. Hits take 3.4 kB a pair and method."""
    part_rows: int = 50_000
    """Rows of a corpus, or of a table, that one task scores: some 500 MB of paragraphs; parts end
    earlier at 64 MB of text."""
    filters: FilterSettings = field(default_factory=FilterSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        for name in ("negatives", "queries_at_once", "part_rows"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} {getattr(self, name)} is too small; expected 1 up")
        if not self.asked or set(self.asked) - set(METHODS):
            raise SettingsError(
                f"methods {', '.join(self.methods) or '(none)'} can't be; expected bm25, vector or"
                " both"
            )
        if "vector" in self.asked and self.table is None:
            raise SettingsError(
                "--methods vector takes negatives from a table: give --table DIR/NAME, which"
                f" {self.how_to_embed('DIR/NAME')} makes"
            )
        if "bm25" not in self.asked and self.corpus:
            raise SettingsError(
                "--corpus is what bm25 searches, and --methods is vector alone, which searches"
                " --table; leave the one out or add bm25 to the other"
            )

    @property
    def asked(self) -> list[Method]:
        """The methods, each once."""
        words = [word.strip() for item in self.methods for word in item.split(",")]
        return cast("list[Method]", list(dict.fromkeys(word for word in words if word)))

    def how_to_embed(self, table: str) -> str:
        """The command that makes the table."""
        return (
            f"`python jobs/embed.py --corpus … --table {table} --encoder.path {self.encoder.path}`"
        )


def run(job: MineJob) -> dict[str, Any]:
    """Mine, and write the folder; returns what report.json holds."""
    for place in (*job.pairs, *job.corpus):
        settings.refuse_relative(**{"pairs or --corpus": place})
    settings.refuse_relative(table=job.table, out=job.out)
    job = replace(job, storage=job.storage.resolved())
    check_vacant(job.out, job.storage)
    table, digest = open_table(job) if "vector" in job.asked else (None, "")
    corpus = find_corpus(job) if job.corpus else None
    began = time.perf_counter()
    pairs = Pairs(open_examples(source_of(job), storage=job.storage))
    log.info("%s pairs", f"{pairs.store.rows:,}")
    counts: Counter[str] = Counter()
    with cluster(), whole_folder(job.out, job.storage) as (store, folder):
        try:
            pool = size_pool(job.pool)
            configure_data(pool, ray.data.DataContext.get_current())
            candidates = read_candidates(job, corpus, pairs, pool) if "bm25" in job.asked else None
            mining = mining_of(job, pairs, candidates, table, digest, pool)
            for number, tables in enumerate(mining.run(counts)):
                with store.open(f"{folder}/part-{number:05}.parquet", "wb") as file:
                    write(file, tables)
        except (ray.exceptions.RayError, ray.data.exceptions.ExecutionTimeoutError) as error:
            raise stella_error_in(error) or error from error
        report = report_of(job, counts, candidates, table)
        report["seconds"] = round(time.perf_counter() - began, 1)
        text = json.dumps(report, ensure_ascii=False, indent=2) + "\n"
        store.pipe_file(f"{folder}/report.json", text.encode())
    show(report, job)
    return report


def source_of(job: MineJob) -> ExampleSource:
    """The pairs, as training reads them."""
    return ExampleSource(
        name="pairs",
        kind="pairs",
        files=job.pairs,
        query_column=job.query_column,
        passage_column=job.passage_column,
        negatives_column=job.negatives_column if job.given == "keep" else None,
    )


def open_table(job: MineJob) -> tuple[VectorTable, str]:
    """What is live in the table, and the digest of the encoder that made it.

    Raises:
        TableError: no such table, nothing published, or without texts.
        ModelMismatch: it is another encoder's.
    """
    uri = table_uri(absolute(str(job.table)))
    if VectorTable.open_if_there(uri, job.storage) is None:
        raise TableError(f"{uri}: no such table; {job.how_to_embed(str(job.table))} makes it")
    table = open_live(uri, job.storage)
    own, found = table.encoder(), find_encoder(job.encoder).fingerprint
    if own["digest"] != found["digest"]:
        raise ModelMismatch(
            f"{uri} holds vectors of {own['name']} ({own['digest']}), --encoder.path is"
            f" {found['name']} ({found['digest']}); they differ in"
            f" {', '.join(differing_parts(own, found))}. Give the table's own encoder, or embed the"
            " corpus into another table with this one"
        )
    if "text" not in table.dataset.schema.names or not table.dataset.count_rows():
        lack = "text" if table.dataset.count_rows() else "rows"
        raise TableError(
            f"{uri} holds no {lack}, so there is nothing to take; embed into a new table with"
            " --store_text true"
        )
    return table, str(found["digest"])


def find_corpus(job: MineJob) -> ShardedCorpus:
    """The corpus's shards, the first of each format looked at."""
    columns = CorpusColumns(doc_id=job.doc_id_column, text=job.text_column)
    shards = find_shards(job.corpus, job.storage)
    look_at(shards, columns, [], job.storage)
    return ShardedCorpus(shards, columns, [], job.storage)


def read_candidates(
    job: MineJob, corpus: ShardedCorpus | None, pairs: Pairs, pool: Pool
) -> Candidates:
    """The corpus, or the pairs' passages, in Ray's object store."""
    if corpus is None:
        found = pair_candidates(pairs, pool, job.part_rows)
    else:
        found = corpus_candidates(corpus, pool, job.part_rows)
    log.info("%s candidates in %s parts", f"{found.rows:,}", f"{len(found.parts):,}")
    return found


def mining_of(
    job: MineJob,
    pairs: Pairs,
    candidates: Candidates | None,
    table: VectorTable | None,
    digest: str,
    pool: Pool,
) -> Mining:
    """What the pipeline is told."""
    return Mining(
        pairs=pairs,
        rules=Rules(job.filters, job.negatives, job.pick, job.seed),
        methods=tuple(job.asked),
        candidates=candidates,
        table=table,
        encoder=(job.encoder, digest),
        queries_at_once=job.queries_at_once,
        part_rows=job.part_rows if job.search == "exact" else None,
        pool=pool,
    )


def write(file: Any, tables: Iterator[pa.Table]) -> None:
    """Write tables of the schema OUT as one parquet file, each as it comes."""
    with pq.ParquetWriter(file, OUT, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


def report_of(
    job: MineJob, counts: Counter[str], candidates: Candidates | None, table: VectorTable | None
) -> dict[str, Any]:
    """What report.json holds."""
    return {
        "settings": settings.shown(job),
        "filter": job.filters.version,
        "counts": dict(sorted(counts.items())),
        "candidates": candidates
        and {
            "rows": candidates.rows,
            "passed_over": candidates.passed_over,
            "parts": len(candidates.parts),
        },
        "table": table and {"uri": table.uri, "version": table.version, "tag": LIVE},
        "encoder": table and table.encoder(),
        "versions": package_versions(),
    }


def show(report: dict[str, Any], job: MineJob) -> None:
    """Print what was taken, and what each filter took."""
    counts = report["counts"]
    print("{pairs:,} pairs, {without_negatives:,} of them without negatives".format(**counts))
    for source in ("given", *job.asked):
        own = {
            name.partition(".")[2].replace("_", " "): count
            for name, count in counts.items()
            if name.startswith(f"{source}.")
        }
        if any(own.values()):
            taken, hits = own.pop("taken", 0), own.pop("hits", None)
            of = "" if hits is None else f" of {hits:,} hits"
            filtered = ", ".join(f"{count:,} {name}" for name, count in own.items() if count)
            print(f"{source}: {taken:,} taken{of}" + (f"; not {filtered}" if filtered else ""))
    print(f"{job.out}: filter {report['filter']}, {report['seconds']:g} s")


def main() -> None:
    """Read the settings first: a typo costs nothing."""
    job = settings.read_settings(MineJob, about=(__doc__ or "").split("\n\n")[0])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for chatty in ("botocore", "aiobotocore", "s3fs"):  # they tell where they found credentials
        logging.getLogger(chatty).setLevel(logging.WARNING)
    log.info("settings: %s", settings.shown(job))
    run(job)


if __name__ == "__main__":
    settings.run_job(main)
