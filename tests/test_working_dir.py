"""What `ray job submit --working-dir .` sends: by Ray's packaging, the code and nothing else."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ray._private.runtime_env.packaging import create_package
from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

ROOT = Path(__file__).parents[1]
LITTER = (
    ".venv/lib/python3.11/site-packages/ray/__init__.py", ".venv/bin/python", ".git/objects/ab/cd",
    "demo/docs.lance/data/1.lance", "demo/runs/1/report.json", "db/docs.lance/_versions/1.manifest",
    "runs/20261123/rejects.jsonl", "trained/model.safetensors", "models/big/model.safetensors",
    "data/corpus/1.parquet", "examples/corpus/1.parquet", "tests/jobs/test_embed.py",
    "jobs/__pycache__/embed.cpython-311.pyc", "benchmarks/out/speed.svg", "results/AFQMC.json",
    ".mypy_cache/3.11/x.json", ".pytest_cache/v/x", ".ruff_cache/x", ".hypothesis/x", "night.log",
    "stella_ray.egg-info/PKG-INFO", "build/lib/stella_ray/errors.py", "docs/operations.md",
)  # fmt: skip


def sent(checkout: Path, out: Path) -> dict[str, int]:
    """The files that a submission from this folder uploads, with their bytes."""
    package = out / "package.zip"

    def keep(folder: str, excludes: list[str], is_file: bool = False) -> None:
        assert not is_file
        create_package(folder, package, include_gitignore=True, excludes=excludes)

    # Ray asks for a name first, which it knows the package by; a client would upload it now.
    upload_working_dir_if_needed(
        {"working_dir": str(checkout)}, include_gitignore=True, upload_fn=keep
    )
    with zipfile.ZipFile(package) as archive:
        return {one.filename: one.file_size for one in archive.infolist() if not one.is_dir()}


def test_a_submission_sends_the_code_and_neither_data_nor_caches_nor_tests(tmp_path: Path) -> None:
    found = sent(ROOT, tmp_path)
    needed = {"pyproject.toml", "constraints.txt", "jobs/presets/demo.yaml", "stella_ray/rows.py"}
    needed |= {"deploy/node.env", "stella_ray/evaluate/reference/cmteb.json"}
    needed |= {f"jobs/{path.name}" for path in (ROOT / "jobs").glob("*.py")}
    assert needed <= found.keys()
    tops = {name.partition("/")[0] for name in found}
    folders = {name for name in tops if (ROOT / name).is_dir()}
    assert folders == {"jobs", "stella_ray", "deploy"}
    assert sum(found.values()) < 5_000_000


def test_what_a_checkout_gathers_is_not_sent(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in (*LITTER, "jobs/embed.py", "stella_ray/errors.py", "jobs/presets/nightly.yaml"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("x", "utf-8")
    for name in (".gitignore", ".rayignore"):
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    found = sent(checkout, tmp_path)
    assert found.keys() == {
        "jobs/embed.py", "stella_ray/errors.py", "jobs/presets/nightly.yaml", ".gitignore",
        ".rayignore",
    }  # fmt: skip


def test_without_the_rayignore_data_would_be_sent(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/1.parquet").write_text("x", "utf-8")
    (tmp_path / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())
    assert "data/1.parquet" in sent(tmp_path, tmp_path.parent)
