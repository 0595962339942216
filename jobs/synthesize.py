"""Make training pairs, (question, paragraph) and (sentence, paragraph), with a language model.

python jobs/synthesize.py --corpus CORPUS --endpoint http://HOST:PORT/v1 --model NAME --out FOLDER
    --pairs 10000 [--kinds question,sentence] [--positions start,middle,end]

The endpoint's key, if it wants one, is OPENAI_API_KEY in the environment. Run again, it asks only
what no run before it has asked; other words, another model or temperature are asked anew.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from stella_ray import settings
from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.errors import IncompleteRun, SettingsError, stella_error_in
from stella_ray.learn.asking import PROMPT_VERSION, AskSettings
from stella_ray.learn.synthetic import counted
from stella_ray.pipeline.answers import AnswerFiles, synthesis_folder, write_lines
from stella_ray.pipeline.budget import Budget
from stella_ray.pipeline.cells import CorpusColumns
from stella_ray.pipeline.choose import choose
from stella_ray.pipeline.cluster import Pool, PoolSettings, cluster, configure_data, size_pool
from stella_ray.pipeline.corpus import ShardedCorpus, find_shards, look_at
from stella_ray.pipeline.endpoint import ClientSettings, chat_url
from stella_ray.pipeline.round_trip import RoundTrip
from stella_ray.pipeline.synthesize import PAIR, Synthesis
from stella_ray.storage import StorageSettings, write_json

log = logging.getLogger("stella_ray.synthesize")


@dataclass(frozen=True, kw_only=True)
class SynthesizeJob:
    """Make training pairs of a corpus's paragraphs with a language model."""

    corpus: list[str]
    """Files, folders or globs of shards: parquet, jsonl (.gz, .zst), csv (.gz, .zst)."""
    endpoint: str
    """Address of an OpenAI-compatible server, with its /v1."""
    out: str
    """Folder of pairs.parquet, rejects.jsonl, report.json and all answers; a later run goes on in
    it. On a disk of the machine that the job is started on."""
    pairs: int
    """Pairs wanted; there may be a few more."""
    doc_id_column: str = "id"
    """Column of ids, text or integers."""
    text_column: str = "text"
    """Column of texts."""
    requests_per_pair: float = 3.0
    """Requests at most, for each pair wanted: how many answers may be bad."""
    ask: AskSettings
    client: ClientSettings = field(default_factory=ClientSettings)
    window: int = 64
    """Requests whose answers are written together: what is asked again after a kill, for each 16 of
    client.concurrency."""
    price_in: float = 0.0
    """Price of a million tokens of prompts, in any currency, for the report and max_cost."""
    price_out: float = 0.0
    """Price of a million tokens of answers."""
    max_cost: float | None = None
    """Most that may be spent in this folder, over all runs; the run ends with exit code 6 before
    it, and what was answered is judged and written. Tries that failed aren't known to cost."""
    max_total_tokens: int | None = None
    """The same in tokens, of prompts and answers together."""
    top_k: int = 10
    """Place at which the encoder must find the paragraph by its question among the pool; 0: leave
    this round trip out."""
    pool_size: int = 5_000
    """Paragraphs of the pool: the first ones that are asked about."""
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        chat_url(self.endpoint)
        for name in ("pairs", "window", "pool_size"):
            if getattr(self, name) < 1:
                raise SettingsError(
                    f"{name} {getattr(self, name)} is too small; expected 1 or more"
                )
        for name in ("price_in", "price_out", "top_k", "max_cost", "max_total_tokens"):
            if (getattr(self, name) or 0) < 0:
                raise SettingsError(f"{name} {getattr(self, name)} is negative; expected 0 or more")
        if self.requests_per_pair < 1:
            raise SettingsError(
                f"requests_per_pair {self.requests_per_pair:g} is too small; expected 1 or more"
            )
        if self.max_cost is not None and not self.price_in + self.price_out:
            raise SettingsError(
                "max_cost needs a price; give --price_in and --price_out, of a million tokens"
            )

    @property
    def columns(self) -> CorpusColumns:
        """The corpus's columns."""
        return CorpusColumns(doc_id=self.doc_id_column, text=self.text_column)

    @property
    def budget(self) -> Budget:
        """What may be spent."""
        return Budget(
            most_tokens=self.max_total_tokens,
            most_cost=self.max_cost,
            price_in=self.price_in,
            price_out=self.price_out,
        )


def run(job: SynthesizeJob) -> dict[str, Any]:
    """Choose paragraphs, ask, judge, write.

    Raises:
        IncompleteRun: there are fewer pairs than wanted; those that there are are written.
        SettingsError: the endpoint refuses the key, or knows no such model.
    """
    settings.refuse_relative(out=job.out)
    for place in job.corpus:
        settings.refuse_relative(corpus=place)
    job = replace(job, storage=job.storage.resolved())
    with synthesis_folder(job.out) as folder:
        corpus = ShardedCorpus(find_shards(job.corpus, job.storage), job.columns, (), job.storage)
        look_at(corpus.shards, job.columns, (), job.storage)
        spec = find_encoder(job.encoder) if job.top_k else None
        answers = AnswerFiles(folder)
        with cluster():
            pool = size_pool(job.pool)
            configure_data(pool, ray.data.DataContext.get_current())
            try:
                synthesis, documents = prepare(job, corpus, pool, answers)
                if spec is not None:
                    passages = dict.fromkeys(one.passage for one in synthesis.requests)
                    some = list(passages)[: job.pool_size]
                    synthesis.round_trip = RoundTrip(job.encoder, spec, pool, some)
                synthesis.execute()
            except (ray.exceptions.RayError, ray.data.exceptions.ExecutionTimeoutError) as error:
                raise as_person_reads_it(error) from error
        report = written(job, folder, synthesis, documents)
    show(report, folder)
    if synthesis.accepted < job.pairs:
        raise IncompleteRun(f"{synthesis.accepted:,} of {job.pairs:,} pairs: {synthesis.stopped}")
    return report


def prepare(
    job: SynthesizeJob, corpus: ShardedCorpus, pool: Pool, answers: AnswerFiles
) -> tuple[Synthesis, int]:
    """Choose what is asked; also the count of documents."""
    most = int(job.pairs * job.requests_per_pair)
    chosen = choose(corpus, pool, job.ask, most)
    log.info(
        "%s documents, %s requests chosen, %s answers from before",
        *(f"{n:,}" for n in (chosen.documents, len(chosen.requests), len(answers.known))),
    )
    synthesis = Synthesis(
        requests=chosen.requests,
        answers=answers,
        url=chat_url(job.endpoint),
        ask=job.ask,
        client=job.client,
        budget=job.budget,
        pairs=job.pairs,
        window=job.window,
        pool=pool,
        most_rank=job.top_k,
        round_trip=None,
    )
    return synthesis, chosen.documents


def written(
    job: SynthesizeJob, folder: Path, synthesis: Synthesis, documents: int
) -> dict[str, Any]:
    """Write pairs, rejects and the report, each whole; gives the report."""
    pairs = [row for row in synthesis.judged if row["reason"] is None]
    rejects = [row for row in synthesis.judged if row["reason"] is not None]
    place = folder / "pairs.parquet"
    part = folder / "pairs.parquet.part"
    if pairs:
        pq.write_table(pa.Table.from_pylist(pairs, schema=PAIR), part, compression="zstd")
        part.replace(place)
    else:  # readers refuse a file without rows
        place.unlink(missing_ok=True)
    write_lines(folder / "rejects.jsonl", rejects)
    tokens = synthesis.answers.tokens()
    report = {
        "settings": settings.shown(job),
        "outcome": synthesis.stopped or "complete",
        "prompt_version": PROMPT_VERSION,
        "documents": documents,
        "requests_chosen": len(synthesis.requests),
        "answered_before": synthesis.from_before,
        "asked": synthesis.asked,
        "tries": synthesis.tries,
        "failed": len(synthesis.failures),
        "failures": dict(Counter(synthesis.failures).most_common(10)),
        "judged": len(synthesis.judged),
        "pairs": len(pairs),
        "pairs_by": {
            name: dict(Counter(row[name] for row in pairs)) for name in ("kind", "position")
        },
        "rejected": counted(row["reason"] for row in synthesis.judged),
        "prompt_tokens": tokens[0],
        "completion_tokens": tokens[1],
        "cost": round(job.budget.cost(*tokens), 6),
    }
    write_json(str(folder / "report.json"), report)
    return report


def show(report: dict[str, Any], folder: Path) -> None:
    """Print the counts."""
    rejected = ", ".join(f"{name} {n:,}" for name, n in report["rejected"].items() if n)
    print(
        f"{report['pairs']:,} pairs of {report['judged']:,} answers"
        + (f"; rejected: {rejected}" if rejected else "")
    )
    print(
        f"asked {report['asked']:,} ({report['tries']:,} tries, {report['failed']:,} failed),"
        f" {report['answered_before']:,} answered before; in all {report['prompt_tokens']:,} +"
        f" {report['completion_tokens']:,} tokens, cost {report['cost']:,.4f}"
    )
    print(f"report: {folder / 'report.json'}")


def as_person_reads_it(error: Exception) -> Exception:
    """The one line of a failure on a worker; a bug in our code stays the exception that it is."""
    known = stella_error_in(error)
    if known is not None or isinstance(error, ray.exceptions.RayTaskError):
        return known or error
    reason = " ".join(str(error).split())[:300]
    return IncompleteRun(
        f"the pipeline broke off ({type(error).__name__}: {reason}); answers are kept, run again to"
        " go on"
    )


def main() -> None:
    """Read the settings first: a typo costs nothing."""
    job = settings.read_settings(SynthesizeJob, about=(__doc__ or "").split("\n\n")[0])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    log.info("settings: %s", settings.shown(job))
    run(job)


if __name__ == "__main__":
    settings.run_job(main)
