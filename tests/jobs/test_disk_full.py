"""A disk that fills up while rows are staged: one line, nothing published, then on."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import TableError
from stella_ray.pipeline.cluster import PoolSettings
from stella_ray.table.index import IndexSettings
from tests.conftest import HAN
from tests.jobs.conftest import Desk, documents, rows_of

pytestmark = pytest.mark.ray


def mount(folder: Path, *options: str) -> bool:
    command = ["mount", *options, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount(folder, "-t", "tmpfs", "-o", "size=4m"):
        pytest.skip("a file system of its own can't be mounted here (that needs root)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_the_run_in_one_line_and_the_next_goes_on(
    desk: Desk, small_disk: Path, write_jsonl: Callable[..., Path]
) -> None:
    desk.table = small_disk / "db/docs"
    encoder = EncoderSettings(path=str(desk.encoder), max_tokens=16)
    settings = {
        "encoder": encoder,
        "pool": PoolSettings(window_rows=64, rows_per_commit=64),
        "index": IndexSettings(text=False),  # it would be larger than the texts
    }
    evening = documents(30)
    write_jsonl(desk.corpus / "a.jsonl", evening)
    desk.embed(**settings)

    dice = random.Random(1)  # letters that don't compress: 12 kB a text, six megabytes in all
    morning = [
        {**row, "text": row["text"] + "".join(dice.choices(HAN, k=4_000))}
        for row in documents(500, 30)
    ]
    write_jsonl(desk.corpus / "b.jsonl", morning)
    with pytest.raises(TableError, match="No space left on device") as raised:
        desk.embed(**settings)
    assert "\n" not in str(raised.value)
    assert rows_of(desk.table).keys() == {row["id"] for row in evening}

    assert mount(small_disk, "-o", "remount,size=64m")
    report = desk.embed(**settings)
    assert report.embedded < 500, "what was committed before the disk was full is kept"
    assert rows_of(desk.table).keys() == {row["id"] for row in evening + morning}
    # Half-written files of the failed run are gone.
    used = sum(path.stat().st_size for path in small_disk.rglob("*") if path.is_file())
    assert used < 3 * 6_500_000
