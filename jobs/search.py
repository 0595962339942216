"""Find documents in the published version of a table.

python jobs/search.py --table TABLE --query "…" [--mode vector|text|hybrid] [--limit 5]
    [--filter "title = '…'"] [--json true]
"""

from __future__ import annotations

import json
import logging
import re
import sys
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

import stella_ray
from stella_ray import settings
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import ModelError, ModelMismatch, SettingsError
from stella_ray.storage import StorageSettings, absolute
from stella_ray.table.opening import differing_parts
from stella_ray.table.search import open_live, search
from stella_ray.table.vectors import VectorTable, table_uri

SNIPPET = 60
"""Characters of a text that a hit shows."""

MAX_LIMIT = 1_000_000
"""All hits are held in memory; who wants more reads the table itself."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""What a terminal would obey instead of showing."""


@dataclass(frozen=True, kw_only=True)
class SearchJob:
    """Find documents in the published version of a table."""

    table: str
    """DIR/NAME, as it was embedded."""
    query: str
    """What to look for, in plain words; for its vector, the encoder's query prefix is put before
    it."""
    mode: Literal["vector", "text", "hybrid"] = "vector"
    """vector: by meaning, the score is the cosine; text: by the words themselves (BM25), of two
    characters or more, for names and numbers, and fast, since no encoder is loaded; hybrid: both
    rankings fused (RRF), for queries of which one doesn't know which will do."""
    limit: int = 10
    """Documents at most; of a document that is cut into chunks, the best chunk is shown."""
    filter: str | None = None
    """SQL over the table's columns that a hit must meet, as in: category = '天文'."""
    json: bool = False
    """One JSON object a hit and line instead of a table for people."""
    encoder_path: str | None = None
    """Where the table's encoder is now, if it moved."""
    device: str = "cpu"
    """Where the query is encoded."""
    storage: StorageSettings = StorageSettings()

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        if not 1 <= self.limit <= MAX_LIMIT:
            raise SettingsError(f"limit {self.limit} must be 1 to {MAX_LIMIT:,}")
        if not self.query.strip():
            raise SettingsError("the query is empty; expected some words")


def run(job: SearchJob) -> list[dict[str, Any]]:
    """Search what is live; the query's vector is by the table's own encoder."""
    table = open_live(table_uri(absolute(job.table)), job.storage)
    hits = search(
        table,
        vector=None if job.mode == "text" else query_vector(table, job),
        text=None if job.mode == "vector" else job.query,
        limit=job.limit,
        filter=job.filter,
    )
    if job.json:
        for hit in hits:
            print(json_line(hit))
    else:
        show(hits)
    return hits


def query_vector(table: VectorTable, job: SearchJob) -> np.ndarray:
    """The query as the table's own encoder sees it, float32 [dim]."""
    vector: np.ndarray = table_encoder(table, job).embed([job.query], prefix="query")[0]
    return vector


def table_encoder(table: VectorTable, job: SearchJob) -> stella_ray.Encoder:
    """Open the encoder that the table remembers.

    Raises:
        ModelError: it is not there any more.
        ModelMismatch: what is there now is another encoder.
    """
    own = table.encoder()
    how = dict(own["open"])
    if job.encoder_path:
        # A folder has no revision; the weights' own digest says whether they are the same.
        how = {**how, "path": job.encoder_path, "revision": None}
    try:
        # Brings torch, which a typo need not wait for.
        encoder = stella_ray.Encoder(EncoderSettings(**how, device=job.device))
    except ModelError as error:
        why = str(error).replace("--encoder.path", "--encoder_path")
        raise ModelError(f"{table.uri}: its encoder can't be opened: {why}") from None
    found = encoder.spec.fingerprint
    if differing := [part for part in differing_parts(own, found) if part != "revision"]:
        raise ModelMismatch(
            f"{table.uri} holds vectors of {own['name']} ({own['digest']}), {how['path']} is now"
            f" another encoder ({found['digest']}); they differ in {', '.join(differing)}."
            " Say where the table's own is with --encoder_path"
        )
    return encoder


def json_line(hit: dict[str, Any]) -> str:
    """A hit as one line for programs: `id` and `score`, then kept columns and the text, whole."""
    own = {"id": hit["doc_id"], "score": round(hit["score"], 6)}
    line = own | {name: hit[name] for name in hit if name not in ("doc_id", *own)}
    return json.dumps(line, ensure_ascii=False, default=str)


def show(hits: list[dict[str, Any]]) -> None:
    """Print the hits as a table."""
    if not hits:
        print("no hits")
        return
    shown = Table(show_lines=False)
    titled = any("title" in hit for hit in hits)
    chunked = any("chunk" in hit for hit in hits)
    for name in (
        "id", "score", *(["chunk"] if chunked else []), *(["title"] if titled else []), "snippet",
    ):  # fmt: skip
        shown.add_column(name, overflow="fold")
    for hit in hits:
        snippet = " ".join((hit.get("text") or "").split())
        snippet = snippet[:SNIPPET] + ("…" if len(snippet) > SNIPPET else "")
        title = [str(hit.get("title") or "")] if titled else []
        # People count from 1.
        chunk = [f"{hit['chunk'] + 1} of {hit['chunks']}"] if chunked else []
        cells = [hit["doc_id"], f"{hit['score']:.4f}", *chunk, *title, snippet]
        shown.add_row(*(_CONTROL.sub(" ", cell) for cell in cells))
    # Hits may hold anything: brackets are no markup, `:smile:` is no emoji.
    width = None if sys.stdout.isatty() else 120
    Console(markup=False, emoji=False, highlight=False, width=width).print(shown)


def main() -> None:
    """Read the settings first: a typo costs nothing."""
    job = settings.read_settings(SearchJob, about=(__doc__ or "").split("\n\n")[0])
    logging.basicConfig(level=logging.WARNING)
    run(job)


if __name__ == "__main__":
    settings.run_job(main)
