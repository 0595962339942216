"""Settings: a frozen dataclass filled from defaults, environment, a YAML preset and flags.

jsonargparse does the reading; this file adds what its users would trip over: lists given as plain
words (`--corpus a b`), a nested setting named by its last part where that is unambiguous
(`--rows_per_commit` for `--pool.rows_per_commit`), and errors of one line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import re
import sys
import time
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse

from stella_ray.errors import SettingsError, StellaError, stella_error_in

Settings = TypeVar("Settings")

_SECRET = re.compile(
    r"secret|password|passwd|access_key|api_key|(session|auth|bearer|access)_token|credential",
    re.IGNORECASE,
)


def _fields(kind: type, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, type) of every setting that holds a value of its own."""
    types = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = f"{above}{field.name}"
        if dataclasses.is_dataclass(types[field.name]):
            yield from _fields(types[field.name], f"{name}.")
        else:
            yield name, types[field.name]


def _spelled_out(arguments: Sequence[str], kind: type) -> list[str]:
    """Rewrite short names to full ones and a list's words to the JSON that jsonargparse reads."""
    types = dict(_fields(kind))
    leaves = [name.rpartition(".")[2] for name in types]
    full = {leaf: name for leaf, name in zip(leaves, types, strict=True) if leaves.count(leaf) == 1}
    out: list[str] = []
    configs: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if not flag.startswith("--"):
            out.append(word)
            continue
        name = flag[2:].replace("-", "_")
        name = full.get(name, name)
        alone = not equals and (not words or words[0].startswith("--"))
        if name == "config" and not alone:
            configs.append(f"--config={value if equals else words.pop(0)}")
            continue
        if types.get(name) is bool and alone:
            out.append(f"--{name}=true")
            continue
        if typing.get_origin(types.get(name)) is not list:
            out.append(f"--{name}{equals}{value}")
            continue
        values = [value] if equals else []
        while not equals and words and not words[0].startswith("--"):
            values.append(words.pop(0))
        plain = len(values) != 1 or not re.fullmatch(r"\[.*\]", values[0], re.DOTALL)
        out += [f"--{name}", json.dumps(values, ensure_ascii=False) if plain else values[0]]
    return configs + out  # configs in front, because what comes later wins


def read_settings(
    kind: type[Settings], arguments: Sequence[str] | None = None, *, about: str = ""
) -> Settings:
    """Fill `kind` from defaults, `STELLA_RAY_*` variables, `--config FILE`, flags; the last wins.

    Raises:
        SettingsError: an unknown name, or a value of the wrong type; nothing was touched yet.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    with contextlib.suppress(ImportError):  # without jsonargparse[signatures], help has no reasons
        jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=Path(sys.argv[0]).name,
        description=about or (kind.__doc__ or "").split("\n\n")[0],
        default_env=True,
        env_prefix="STELLA_RAY",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file of settings")
    parser.add_class_arguments(kind)
    try:
        found = parser.parse_args(_spelled_out(given, kind))
        found.pop("config", None)
        return kind(**parser.instantiate(found).as_dict())
    except jsonargparse.ArgumentError as error:
        raise SettingsError(_one_line(str(error), kind)) from None
    except (OSError, ValueError) as error:
        if isinstance(error, StellaError):
            raise
        raise SettingsError(_one_line(str(error), kind)) from None


def _one_line(message: str, kind: type) -> str:
    line = " ".join(message.split())
    line = re.sub(r"<class '([\w.]+)'>", r"\1", line).replace("typing.", "")
    if unknown := re.search(r"unrecognized arguments: --([\w.-]+)", line):
        names = [name for name, _ in _fields(kind)]
        near = difflib.get_close_matches(unknown[1], names, n=1)
        near_words = f"did you mean --{near[0]}?" if near else "see --help"
        line = f"unknown setting --{unknown[1]}; {near_words}"
    return line


def shown(settings: Any) -> dict[str, Any]:
    """The settings as a plain dict for logs and reports, secrets masked."""

    def mask(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {key: mask(below, key) for key, below in value.items()}
        return "***" if value is not None and _SECRET.search(name) else value

    return typing.cast("dict[str, Any]", mask(dataclasses.asdict(settings), ""))


def run_job(main: Callable[[], None]) -> typing.NoReturn:
    """Run a job's `main` and leave with its exit code: one line for a person, a bug's traceback."""
    code = 0
    try:
        main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; committed rows stay, the next run goes on from them\n")
        code = 130
    except Exception as error:
        known = stella_error_in(error)
        if known is None:
            traceback.print_exc()
            code = 1
        else:
            sys.stderr.write(f"error: {known}\n")
            code = known.exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def process_age() -> float:
    """Seconds since this process was started; 0 where the system doesn't say (Linux does)."""
    try:
        ticks = int(Path("/proc/self/stat").read_text("ascii").rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return 0.0


def in_submitted_job() -> bool:
    """Whether this process is the driver of a `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def refuse_relative(**paths: str | None) -> None:
    """Refuse relative paths in a submitted job, where the driver's folder is a temporary one.

    Raises:
        SettingsError: names the setting, the path and the way out.
    """
    if not in_submitted_job():
        return
    for name, path in paths.items():
        if path is not None and "://" not in path and not Path(path).is_absolute():
            raise SettingsError(
                f"--{name} {path} is a relative path, which in a submitted job points into a"
                " temporary folder; give an absolute path or a URI"
            )
