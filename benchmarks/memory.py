"""Does the memory of every process stay flat as the corpus grows tenfold?

Runs the whole job on the first N and the first 10 N rows of a corpus and samples, twice a second,
what each of its processes holds for itself (USS: shared memory, such as Ray's object store, counts
for none).

    python -m benchmarks.memory ROWS.jsonl --rows 1000 --encoder_path FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def role(process: psutil.Process) -> str:
    """What a process of a run is for."""
    words = " ".join(process.cmdline())
    if found := re.match(r"ray::(?:MapWorker\()?(?:MapBatches\((\w+)\))?", words):
        return found[1] or "ray, other"
    return "driver" if "jobs/embed.py" in words else "ray, services"


def most_memory(command: list[str]) -> dict[str, float]:
    """Run a job; the most MiB that any process of each role held for itself."""
    peaks: dict[str, float] = {}
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    root = psutil.Process(driver.pid)
    while driver.poll() is None:
        for process in [root, *root.children(recursive=True)]:
            try:
                name, held = role(process), process.memory_full_info().uss / 2**20
            except psutil.Error:
                continue
            peaks[name] = max(peaks.get(name, 0.0), held)
        time.sleep(0.5)
    if driver.returncode:
        raise SystemExit(f"the job failed with exit code {driver.returncode}")
    return peaks


def main() -> None:
    """Run both sizes and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("rows_file", type=Path, help="a .jsonl file with id and text")
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--encoder_path", default="multilingual-e5-small")
    options = parser.parse_args()
    peaks = []
    with tempfile.TemporaryDirectory() as scratch:
        for count in (options.rows, 10 * options.rows):
            folder = Path(scratch) / str(count)
            folder.mkdir()
            with options.rows_file.open("rb") as file:
                lines = list(itertools.islice(file, count))
            for i in range(10):
                (folder / f"{i}.jsonl").write_bytes(b"".join(lines[i::10]))
            command = [sys.executable, "jobs/embed.py", "--corpus", str(folder)]
            command += ["--table", f"{scratch}/db{count}/docs"]
            command += ["--encoder.path", options.encoder_path]
            peaks.append(most_memory(command))
            print(f"{len(lines):,} rows done", flush=True)
    for name in sorted(set(peaks[0]) | set(peaks[1])):
        print(f"{name:20} {peaks[0].get(name, 0):8,.0f} MiB {peaks[1].get(name, 0):8,.0f} MiB")


if __name__ == "__main__":
    main()
