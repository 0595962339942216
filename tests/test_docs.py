"""README.md and docs/: every command is one that its job takes, and every file named is there."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stella_ray.errors import SettingsError
from stella_ray.settings import read_settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OPERATORS = {"operations", "aws", "kubernetes", "own-machines"}


def commands(text: str) -> Iterator[str]:
    """Every command line of a page that starts a job of ours: in blocks, and between backticks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    joined = re.sub(r" *\\\n\s*", " ", "\n".join(blocks))
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    for line in [*joined.splitlines(), *inline]:
        if re.search(r"(^|\s)jobs/\w+\.py\s+\S", line):
            yield line


def parts(line: str) -> Iterator[tuple[str, list[str]]]:
    """The jobs of a line with their words; `[…]` may be given, `…` is what the page leaves out."""
    line = re.sub(r"\[(--?[^\]]*)\]", r"\1", line.removeprefix("$ "))
    words: list[str] = []
    for word in shlex.split(line, comments=True):
        if word in {"|", ">", "&&", "||", ";"}:
            break
        words.append(word)
    starts = [i for i, word in enumerate(words) if re.fullmatch(r"\S*jobs/\w+\.py", word)]
    for start, stop in zip(starts, [*(i - 1 for i in starts[1:]), len(words)], strict=True):
        given = [word for word in words[start + 1 : stop] if word not in {"…", "..."}]
        given = [word for word in given if word != "--help"]
        yield Path(words[start]).stem, given[:-1] if given[-1:] == ["--"] else given


def check(name: str, words: list[str]) -> None:
    """Read the words as the job does, up to what is only known where it runs."""
    module = importlib.import_module(f"jobs.{name}")
    (kind,) = (
        one for one in vars(module).values()
        if isinstance(one, type) and one.__name__.lower() == f"{ALIASES.get(name, name)}job"
    )  # fmt: skip
    if name == "publish":
        plain = [word for word in words[:2] if not word.startswith("-")]
        named = [f"--{key}={word}" for key, word in zip(("action", "version"), plain, strict=False)]
        words = named + words[len(plain) :]
    for at, word in enumerate(words):  # a file of the reader's own
        if word == "--config" and not (ROOT / words[at + 1]).exists():
            assert words[at + 1].endswith(".yaml")
            words = words[:at] + words[at + 2 :]
            break
    read_settings(kind, words)


ALIASES = {"with_gpus": "gpus"}

FOUND = [
    (page.name, *part)
    for page in PAGES
    for line in commands(page.read_text("utf-8"))
    for part in parts(line)
]


def test_the_pages_have_commands_to_check() -> None:
    assert {page.stem for page in PAGES} >= OPERATORS
    assert len(FOUND) > 30
    assert {"embed", "search", "publish", "with_gpus"} <= {name for _, name, _ in FOUND}


@pytest.mark.parametrize(
    ("name", "words"),
    [pytest.param(*part, id=f"{page}-{i}-{part[0]}") for i, (page, *part) in enumerate(FOUND)],
)
def test_a_command_on_a_page_is_one_that_its_job_takes(name: str, words: list[str]) -> None:
    try:
        check(name, words)
    except SettingsError as error:
        # A part of a command, named in a sentence, leaves out what the job must have.
        if "required" not in str(error).lower():
            raise


@pytest.mark.parametrize(
    "line",
    [
        "$ python jobs/embed.py --corpora x --table t",
        "$ python jobs/publish.py roll-back --table t",
        "$ python jobs/with_gpus.py --gpus many -- python jobs/embed.py --corpus x --table t",
        "$ python jobs/search.py --table t --query 'a' --mode vectors",
    ],
)
def test_a_wrong_command_would_be_found(line: str) -> None:
    (job, *_) = parts(next(commands(f"```console\n{line}\n```")))
    with pytest.raises(SettingsError):
        check(*job)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_and_names_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    anchors = {
        other: {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-")
                for head in re.findall(r"^#+ (.+)$", other.read_text("utf-8"), re.M)}
        for other in PAGES
    }  # fmt: skip
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors[target], link
    for name in re.findall(
        r"(?<![\w/.~-])((?:deploy|jobs|benchmarks|tests|docs)/[\w./-]*\w)", text
    ):
        if not any(made in name for made in OTHERS):
            assert (ROOT / name).exists(), name


OTHERS = ("benchmarks/out", "deploy/grafana.json")
"""Made by a command, or by the branch that adds metrics."""


def test_the_kubernetes_page_explains_every_example_value_of_the_manifests() -> None:
    text = (ROOT / "docs/kubernetes.md").read_text("utf-8")
    for name in ("nightly.yaml", "raycluster.yaml"):
        manifest: Any = (ROOT / "deploy" / name).read_text("utf-8")
        body = "\n".join(line for line in manifest.splitlines() if not line.startswith("#"))
        for value in set(re.findall(r"\S*example[\w./:-]*|arn:aws:\S+|eu-central-1", body)):
            assert f"`{value}`" in text, value
