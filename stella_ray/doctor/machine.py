"""What is on this machine: versions, processors with their kernels, room."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from stella_ray.doctor.finding import Finding, Verdict, brief

FREE_GB, OPEN_FILES = 10, 4_096
"""Below: a note. Ray spills blocks to the temporary folder, and has some sockets a worker."""


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
        "Triton": (triton, "note", "--encoder.implementation fused needs it"),
    }
    for name, (use, verdict, so) in tries.items():
        try:
            use()
            torch.cuda.synchronize(number)
            yield "ok", f"GPU {number}: {name} works"
        except Exception as error:
            yield verdict, f"GPU {number}: {name} doesn't work ({brief(error)}); {so}"


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
