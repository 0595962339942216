"""The wheel: what it needs and nothing else, and with it alone the demo's job runs."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.conftest import rows_of

ROOT = Path(__file__).parents[1]
NEEDED = ("stella_ray", "pyproject.toml", "README.md", "LICENSE")


def run(*command: Any, **more: Any) -> str:
    """What the command prints; its own words are in the failure."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=300, **more
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as anyone would from a copy of the checkout, which gets no build/."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    litter = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=litter)
        else:
            shutil.copy(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    run(*pip, "--wheel-dir", folder, folder / "source")
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_has_the_package_its_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        told = {name.rpartition("/")[2] for name in archive.namelist() if ".dist-info/" in name}
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "stella_ray").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert found == sources
    assert {"stella_ray/py.typed", "stella_ray/__main__.py"} < found
    assert {"METADATA", "LICENSE"} <= told
    assert wheel.stat().st_size < 1_000_000


@pytest.mark.slow
@pytest.mark.ray
def test_with_the_wheel_alone_the_demo_runs(wheel: Path, tmp_path: Path) -> None:
    """Its environment has this one's other packages, but not this checkout."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    # A .pth file's folders are searched last, and .pth files in them are not read: no editable one.
    (site / "others.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    for name in ("jobs", "examples"):
        shutil.copytree(ROOT / name, tmp_path / "work" / name)
    usual = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}
    here: dict[str, Any] = {"cwd": tmp_path / "work", "env": usual}
    where = run(python, "-c", "import stella_ray; print(stella_ray.__file__)", **here)
    assert Path(where.strip()).is_relative_to(tmp_path)
    told = run(python, "-m", "stella_ray", "doctor", "--encoder", "multilingual-e5-small", **here)
    assert f"stella-ray {importlib.metadata.version('stella-ray')}" in told
    less = ["--corpus", "examples/corpus/part-1.jsonl.gz", "--encoder.max_tokens", "32"]
    told = run(python, "jobs/embed.py", "--config", "jobs/presets/demo.yaml", *less, **here)
    assert "0 rejected" in told
    assert len(rows_of(tmp_path / "work/demo/docs")) == 100
    found = run(python, "jobs/search.py", "--table", "demo/docs", "--query", "打雷", **here)
    assert found.strip()
