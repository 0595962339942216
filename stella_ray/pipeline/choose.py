"""Which paragraphs of a corpus are asked about: one pass over it, so many kept as are wanted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from stella_ray.errors import CorpusError
from stella_ray.learn.asking import BUCKETS, AskSettings, Request, requests_about
from stella_ray.learn.overlap import plain_key
from stella_ray.pipeline.cluster import Pool, keep_ray_data_quiet
from stella_ray.pipeline.corpus import ShardedCorpus

REQUEST = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("doc_id", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("position", pa.string()),
        pa.field("start", pa.int32()),
        pa.field("end", pa.int32()),
        pa.field("passage", pa.string()),
        pa.field("seed", pa.int64()),
    ]
)
"""A `Request` as a row."""

CANDIDATE = pa.schema(
    [
        pa.field("bucket", pa.int8()),
        pa.field("place", pa.float64()),
        pa.field("documents", pa.int64()),
        *REQUEST,
    ]
)
"""A request that may be asked, with its bucket of length and its place in it, least first; or a row
that only counts `documents`."""


@dataclass
class Chosen:
    """The requests in the order in which they are asked, and what they were chosen from."""

    documents: int = 0
    requests: list[Request] = field(default_factory=list)


def candidates(block: pa.Table, ask: AskSettings, most: int) -> pa.Table:
    """The requests about a window of documents, `most` of each bucket.

    Args:
        block: the window, `rows.source`; rows that can't be used are passed over.
        ask: what is asked.
        most: requests wanted in all.

    Returns:
        Rows of `CANDIDATE`, the first of them the count of documents.
    """
    keep_ray_data_quiet()
    columns = (block.column(name).to_pylist() for name in ("doc_id", "text", "reason"))
    found: list[list[tuple[float, Request]]] = [[] for _ in BUCKETS]
    documents = 0
    for doc_id, text, reason in zip(*columns, strict=True):
        if reason is not None or not doc_id or not text:
            continue
        documents += 1
        for bucket, place, request in requests_about(doc_id, text, ask):
            found[bucket].append((place, request))
    rows: list[dict[str, Any]] = [{"documents": documents}]
    for bucket, own in enumerate(found):
        for place, request in sorted(own, key=_place)[:most]:
            rows.append({"bucket": bucket, "place": place, **dataclasses.asdict(request)})
    return pa.Table.from_pylist(rows, schema=CANDIDATE)


def choose(corpus: ShardedCorpus, pool: Pool, ask: AskSettings, most: int) -> Chosen:
    """Read the corpus once and choose up to `most` requests, the same ones each time.

    Raises:
        CorpusError: no document has a paragraph that can be asked about.
    """
    blocks = corpus.rows(pool).map_batches(
        candidates,
        fn_kwargs={"ask": ask, "most": most},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=pool.task_cpus,
    )
    chosen = Chosen()
    buckets: list[list[tuple[float, Request]]] = [[] for _ in BUCKETS]
    for block in blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in block.to_pylist():
            chosen.documents += row.pop("documents") or 0
            bucket, place = row.pop("bucket"), row.pop("place")
            if bucket is not None:
                buckets[bucket].append((place, Request(**row)))
        for own in buckets:
            if len(own) > 2 * most:
                own.sort(key=_place)
                del own[most:]
    chosen.requests = in_turn(buckets, ask.shares, most)
    if not chosen.requests:
        raise CorpusError(
            f"none of {chosen.documents:,} documents has a paragraph of {ask.shortest} to"
            f" {ask.longest} characters to ask about; lower --ask.shortest, or change --ask.shares"
        )
    return chosen


def in_turn(
    buckets: list[list[tuple[float, Request]]], shares: list[float], most: int
) -> list[Request]:
    """The buckets' requests in one order in which each prefix has them in proportion to `shares`.

    A longer paragraph comes before a shorter one where both are due; what a bucket lacks, the
    others give. A paragraph that several documents hold is asked about for one of them.
    """
    due: list[tuple[float, int, Request]] = []
    for bucket, (own, share) in enumerate(zip(buckets, shares, strict=True)):
        if share > 0:
            ordered = sorted(own, key=_place)
            due += [((n + 1) / share, -bucket, one) for n, (_, one) in enumerate(ordered)]
    out: list[Request] = []
    owner: dict[int, str] = {}
    for _, _, one in sorted(due, key=lambda item: item[:2]):
        if owner.setdefault(plain_key(one.passage), one.doc_id) == one.doc_id:
            out.append(one)
        if len(out) == most:
            break
    return out


def _place(item: tuple[float, Request]) -> tuple[float, str]:
    return item[0], item[1].key


def as_windows(requests: list[Request], rows: int) -> list[pa.Table]:
    """Cut requests into windows of so many rows of `REQUEST`."""
    starts = np.arange(0, len(requests), rows)
    return [
        pa.Table.from_pylist(
            [dataclasses.asdict(one) for one in requests[start : start + rows]], schema=REQUEST
        )
        for start in starts.tolist()
    ]
