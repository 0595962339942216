"""What do ten thousand small shards on S3 cost, on a first night and on one without changes?

A local S3 server (moto) in a process of its own holds shards and table. Prints seconds and counts
of both nights, and of the same rows in few shards.

    python -m benchmarks.shards [--shards 10000] [--rows 20]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.conftest import HAN, make_encoder
from tests.s3 import ACCESS_KEY, SECRET_KEY, MotoServer, client


def shard(number: int, rows: int) -> bytes:
    """A parquet shard of short texts, each of its own."""
    dice = random.Random(number)
    ids = [f"doc-{number}-{i}" for i in range(rows)]
    texts = ["".join(dice.choices(HAN, k=16)) for _ in ids]
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": ids, "text": texts}), sink)
    return sink.getvalue()


def night(corpus: str, table: str, encoder: Path, report: Path, environment: dict[str, str]) -> Any:
    """Run the job; its report, with its own wall time."""
    command = [sys.executable, "jobs/embed.py", "--corpus", corpus, "--table", table]
    command += ["--encoder.path", str(encoder), "--report", str(report)]
    began = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return {**json.loads(report.read_text("utf-8")), "wall": time.perf_counter() - began}


def main() -> None:
    """Print a line a night."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=20, help="in a shard")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, MotoServer() as server:
        home = Path(scratch)
        environment = {
            **os.environ,
            "AWS_ENDPOINT_URL": server.endpoint_url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }
        encoder = make_encoder(home / "stand-in", layers=1)
        few = max(1, options.shards // 500)
        for count, rows in ((options.shards, options.rows), (few, options.rows * 500)):
            bucket, s3 = f"shards-{count}", client(server.endpoint_url)
            s3.create_bucket(Bucket=bucket)
            for number in range(count):
                key = f"corpus/{number:06}.parquet"
                s3.put_object(Bucket=bucket, Key=key, Body=shard(number, rows))
            for name in ("first", "without changes"):
                found = night(
                    f"s3://{bucket}/corpus/", f"s3://{bucket}/db/docs", encoder,
                    home / f"{bucket}.json", environment,
                )  # fmt: skip
                stages = {k: round(v, 1) for k, v in found["seconds"].items()}
                print(
                    f"{count:,} shards of {rows:,} rows, {name}: {found['embedded']:,} embedded,"
                    f" {found['unchanged']:,} unchanged, {found['wall']:.1f} s {stages}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
