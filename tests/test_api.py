"""docs/api.md lists the public API, and what is listed is so."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import stella_ray
from stella_ray import errors

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/api.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([\w.]+)(?:\((.*?)\))?` \| (.*) \|$", PAGE, re.MULTILINE)
NAMED = set(re.findall(r"`((?:jobs|stella_ray)\.[\w.]+\w)(?:\(.*?\))?`", PAGE))


def find(name: str) -> Any:
    """The module, class, function or property of this dotted name."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"{name} is nowhere")


def test_the_page_lists_each_name_once() -> None:
    names = [name for name, _, _ in ROWS]
    assert len(names) > 35
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_listed_name_is_there_and_says_what_it_does(name: str) -> None:
    assert (inspect.getdoc(find(name)) or "").endswith((".", "`", ")", "|"))


@pytest.mark.parametrize(
    ("name", "told"), [(name, told) for name, told, _ in ROWS if told], ids=lambda text: text
)
def test_it_takes_the_arguments_that_the_page_says(name: str, told: str) -> None:
    takes = [word for word in inspect.signature(find(name)).parameters if word != "self"]
    assert takes == told.split(", ")


def test_a_callable_without_arguments_on_the_page_takes_none() -> None:
    empty = [name for name in re.findall(r"^\| `([\w.]+)\(\)`", PAGE, re.MULTILINE)]
    assert empty == ["stella_ray.pipeline.cluster.cluster"]
    assert not inspect.signature(find(empty[0])).parameters


def test_every_error_is_listed_with_its_exit_code() -> None:
    def below(kind: type) -> set[type]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    listed = {name: int(text) for name, _, text in ROWS if ".errors." in name}
    assert listed == {
        f"stella_ray.errors.{kind.__name__}": kind.exit_code
        for kind in below(errors.StellaError)
        if kind.__module__ == "stella_ray.errors"
    }


def test_every_job_that_runs_is_listed() -> None:
    jobs = {
        f"jobs.{path.stem}"
        for path in (ROOT / "jobs").glob("*.py")
        if "\ndef run(" in path.read_text(encoding="utf-8")
    }
    for job in jobs:
        assert f"{job}.run" in NAMED
        (settings,) = (
            kind
            for kind in vars(importlib.import_module(job)).values()
            if dataclasses.is_dataclass(kind) and kind.__name__.endswith("Job")
        )
        assert f"{job}.{settings.__name__}" in NAMED


def test_what_the_package_itself_offers_is_listed() -> None:
    for name in stella_ray.__all__:
        assert name == "__version__" or f"stella_ray.{name}" in NAMED
        assert getattr(stella_ray, name)


def test_an_attribute_that_isn_t_offered_is_named() -> None:
    with pytest.raises(AttributeError, match="no attribute 'encoder_of'"):
        stella_ray.encoder_of  # noqa: B018


def test_the_pages_import_nothing_that_isn_t_listed() -> None:
    seen = 0
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        if page.name == "extending.md":  # its code becomes part of the package
            continue
        for code in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for node in ast.walk(ast.parse(code)):
                if not isinstance(node, ast.ImportFrom) or not node.module:
                    continue
                if node.module.split(".")[0] in ("stella_ray", "jobs"):
                    seen += 1
                    for one in node.names:
                        assert f"{node.module}.{one.name}" in NAMED, page.name
    assert seen >= 3
