"""Which training rows stand in evaluation sets, word for word or nearly so; and files without them.

python jobs/overlap.py --train FILES --against EVAL… --out FOLDER [--remove true]

Writes report.json, and with --remove the training files without the touched rows.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ray

from stella_ray import settings
from stella_ray.errors import SettingsError
from stella_ray.learn.evaluation_texts import EvaluationText, evaluation_files, evaluation_texts
from stella_ray.learn.folders import new_folder
from stella_ray.learn.ngrams import CHARACTERS
from stella_ray.learn.overlap import KINDS, NEAR_FROM, IndexBuilder
from stella_ray.learn.reading import find_files
from stella_ray.learn.sources import ExampleSource
from stella_ray.pipeline.cluster import PoolSettings, cluster, configure_data, size_pool
from stella_ray.pipeline.overlap import BLOCK_BYTES, SNIPPET, Comparison, compare
from stella_ray.storage import StorageSettings, write_json

log = logging.getLogger("stella_ray.overlap")


@dataclass(frozen=True, kw_only=True)
class OverlapJob:
    """Which training rows stand in evaluation sets, word for word or nearly so."""

    train: list[str]
    """Training files, folders or globs: parquet, jsonl or csv, the last two also .gz or .zst; read
    as training reads them, any number and size, a task for each file."""
    against: list[str]
    """Evaluation sets, each a file, a folder or a glob of those formats, or SQuAD's JSON; all of
    their texts are held in memory."""
    against_columns: list[str] = field(default_factory=list)
    """Columns of theirs that hold texts. Default: all with text that aren't called an id; of
    SQuAD's JSON question and context."""
    out: str
    """The folder that is made: report.json, and with remove `clean/`. Must not be there yet, or be
    empty; on a cluster with remove, on a disk that all nodes share."""
    remove: bool = False
    """Write the training files without the touched rows, as parquet with the columns named here."""
    threshold: float = 0.8
    """Share of the shorter text's strings of five characters that stand in the other too, from
    which they count as near."""
    near_from: int = NEAR_FROM
    """Characters (spaces left out) from which texts are compared for nearness; shorter ones are
    only looked for word for word: names and dates stand in long texts by chance. 5 at least."""
    max_characters: int = 50_000_000
    """Characters of all evaluation texts at most; 50 million take 3 GB while they are indexed,
    and 1 GB in each node's object store after that."""
    examples: int = 3
    """Examples in the report for each file, evaluation set and kind."""
    kind: Literal["pairs", "scored", "nli"] = "pairs"
    """What the training files hold, as in training: pairs, scored pairs, or NLI."""
    query_column: str = "query"
    """Of scored pairs and NLI: the first text."""
    passage_column: str = "passage"
    """Of scored pairs and NLI: the second text."""
    negatives_column: str | None = None
    """pairs: hard negatives; they are looked for too."""
    negatives_are: Literal["list", "text"] = "list"
    """text: the column holds one negative as it is instead of a list."""
    label_column: str = "label"
    """scored: a number; nli: a word."""
    label_order: list[str] = field(
        default_factory=lambda: ["contradiction", "neutral", "entailment"]
    )
    """nli: the labels from least to most alike."""
    storage: StorageSettings = StorageSettings()
    pool: PoolSettings = field(default_factory=PoolSettings)

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        if not self.against:
            raise SettingsError("--against names no evaluation set; give files, folders or globs")
        if len(set(self.against)) < len(self.against):
            raise SettingsError(f"--against names a set twice: {self.against}; name each once")
        if not 0 < self.threshold <= 1:
            raise SettingsError(f"threshold {self.threshold} is no share; expected above 0, to 1")
        if self.near_from < CHARACTERS:
            raise SettingsError(
                f"near_from {self.near_from} is too small; expected {CHARACTERS} or more, since"
                f" strings of {CHARACTERS} characters are compared"
            )
        for name in ("max_characters", "examples"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} {getattr(self, name)} is negative; expected 0 or more")
        self.source  # noqa: B018 - refuses what it refuses

    @property
    def source(self) -> ExampleSource:
        """The training files as training reads them."""
        own = ("kind", "query_column", "passage_column", "negatives_column", "negatives_are")
        more = {name: getattr(self, name) for name in (*own, "label_column", "label_order")}
        return ExampleSource(name="train", files=self.train, **more)


def run(job: OverlapJob) -> dict[str, Any]:
    """Index the evaluation texts, compare the training files, write what was found."""
    settings.refuse_relative(out=job.out)
    for train in job.train:
        settings.refuse_relative(train=train)
    for against in job.against:
        settings.refuse_relative(against=against)
    with new_folder(job.out, SettingsError) as made:
        files = find_files(job.source, job.storage)
        builder, places, sets = read_sets(job)
        clean = made / "clean"
        if job.remove:
            clean.mkdir()
        how = Comparison(
            source=job.source,
            threshold=job.threshold,
            examples=job.examples,
            clean=str(clean) if job.remove else None,
            storage=job.storage,
        )
        with cluster():
            context = ray.data.DataContext.get_current()
            configure_data(size_pool(job.pool), context)
            context.target_max_block_size = BLOCK_BYTES
            words = compare(files, builder.build(), how).iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            )
            report: dict[str, Any] = {
                "settings": settings.shown(job),
                "sets": sets,
                "files": summed(files, [row for block in words for row in block.to_pylist()]),
            }
        report |= totals(report["files"], job.against)
        report["examples"] = with_places(report["files"], places, job.against)
        write_json(str(made / "report.json"), report)
    show(report, job)
    return report


def read_sets(
    job: OverlapJob,
) -> tuple[IndexBuilder, list[EvaluationText], list[dict[str, Any]]]:
    """The evaluation texts: for the index, where each stands, and how many of each set."""
    builder = IndexBuilder(job.max_characters, job.near_from)
    places: list[EvaluationText] = []
    sets: list[dict[str, Any]] = []
    for number, item in enumerate(job.against):
        files, texts, before = evaluation_files(item, job.storage), 0, len(places)
        for path in files:
            for one in evaluation_texts(path, job.against_columns, job.storage):
                texts += 1
                if builder.add(one.text, number):
                    places.append(EvaluationText(one.text[:SNIPPET], one.path, one.row, one.column))
        different = len(places) - before
        sets.append({"name": item, "files": files, "texts": texts, "different": different})
        log.info("%s: %s different texts", item, f"{different:,}")
    return builder, places, sets


def summed(files: list[str], words: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the tasks said, added up for each file."""
    out: list[dict[str, Any]] = [
        {"path": path, "rows": 0, "touched": 0, "counts": {}, "examples": [], "clean": None}
        for path in files
    ]
    for row in words:
        told, own = json.loads(row["told"]), out[row["file"]]
        own["rows"] += told["rows"]
        own["touched"] += told["touched"]
        own["examples"] += told["examples"]
        own["clean"] = told["clean"] or own["clean"]
        for number, counts in told["counts"].items():
            there = own["counts"].setdefault(number, {})
            for kind, count in counts.items():
                there[kind] = there.get(kind, 0) + count
    return out


def totals(files: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """The files' counts together, by the names of the evaluation sets, every kind named."""
    against = {name: Counter(dict.fromkeys(KINDS, 0)) for name in names}
    for own in files:
        own["against"] = {names[int(n)]: counts for n, counts in sorted(own.pop("counts").items())}
        for name, counts in own["against"].items():
            against[name].update(counts)
    return {
        "rows": sum(own["rows"] for own in files),
        "touched": sum(own["touched"] for own in files),
        "against": {name: dict(counts) for name, counts in against.items()},
    }


def with_places(
    files: list[dict[str, Any]], places: list[EvaluationText], names: list[str]
) -> list[dict[str, Any]]:
    """The files' examples in one list, each with the evaluation text and where it stands."""
    out = []
    for own in files:
        for one in sorted(own.pop("examples"), key=lambda one: (one["set"], one["row"])):
            found = places[one.pop("found")]
            at = f"{found.path} row {found.row} column {found.column}"
            told = {**one, "set": names[one["set"]], "file": own["path"]}
            out.append(told | {"evaluation_text": found.text, "at": at})
    return out


def show(report: dict[str, Any], job: OverlapJob) -> None:
    """Print the counts, a line for each file and set with any."""
    for own in report["files"]:
        print(f"{own['path']}: {own['rows']:,} rows, {own['touched']:,} touched")
        for name, counts in own["against"].items():
            told = ", ".join(f"{kind} {counts[kind]:,}" for kind in KINDS if kind in counts)
            print(f"  {name}: {told}")
    share = report["touched"] / report["rows"] if report["rows"] else 0.0
    print(f"all: {report['touched']:,} of {report['rows']:,} rows touched ({share:.2%})")
    for one in report["examples"][: job.examples]:
        texts = (" ".join(one[name].split())[:40] for name in ("text", "evaluation_text"))
        print(f"  {one['kind']} {one['share']:.2f}: {' | '.join(texts)}")
    folder = Path(job.out)
    if job.remove:
        left = report["rows"] - report["touched"]
        print(f"{report['touched']:,} rows removed, {left:,} written to {folder / 'clean'}")
    print(f"report: {folder / 'report.json'}")


def main() -> None:
    """Read the settings first: a typo costs nothing."""
    job = settings.read_settings(OverlapJob, about=(__doc__ or "").split("\n\n")[0])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    run(job)


if __name__ == "__main__":
    settings.run_job(main)
