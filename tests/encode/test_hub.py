"""Loading from the hub, against a small server that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from stella_ray.encode.encoder import Encoder
from stella_ray.encode.models import EncoderSettings, find_encoder

MODEL = "infgrad/stella-base-zh"
REVISIONS = {"main": "a" * 40, "v2": "b" * 40}
WAYS = "give a local model folder or a bundled name (multilingual-e5-small) as --encoder.path"

FIND = """
import json, sys
from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.errors import StellaError
for how in json.loads(sys.argv[1]):
    try:
        spec = find_encoder(EncoderSettings(**how))
        found = {"folder": spec.folder, "fingerprint": spec.fingerprint}
    except StellaError as error:
        found = {"error": str(error)}
    print(json.dumps(found))
"""
EMBED = """
import json, sys, torch
torch.set_num_threads(1)
from stella_ray.encode.encoder import Encoder
print(json.dumps(Encoder(sys.argv[1]).embed(["一二三", "丁"]).tolist()))
"""


class Hub:
    """The answers of a model hub for one model folder on 127.0.0.1, and what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[str]()
        self.status: int | str = 200
        """What every request is answered with, unless it's 200; or `silent`, or `html`."""
        self.cut = ""
        """The file whose sending breaks off half-way."""
        self.stopped = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def stop(self) -> None:
        self.stopped.set()
        if self.thread.is_alive():
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append(f"{request.command} {path}")
        files = {
            file.relative_to(self.folder).as_posix(): file
            for file in sorted(self.folder.rglob("*"))
            if file.is_file()
        }
        api, download = f"/api/models/{MODEL}/", f"/{MODEL}/resolve/"
        kind, _, rest = path.removeprefix(api).partition("/")
        if self.status == "silent":
            self.stopped.wait(60)
        elif self.status == "html":
            self.send(request, 200, b"<html>Please log in to this network</html>")
        elif isinstance(self.status, int) and self.status != 200:
            self.send(request, self.status, {"error": "as the test wants it"})
        elif path.startswith(download):
            commit, _, name = path.removeprefix(download).partition("/")
            body = files[name].read_bytes()
            self.send(request, 200, body, commit, cut=name == self.cut)
        elif not path.startswith(api):
            self.send(request, 401, {"error": "Repository not found"}, code="RepoNotFound")
        elif kind == "revision" and rest in REVISIONS:
            siblings = [{"rfilename": name} for name in files]
            self.send(request, 200, {"id": MODEL, "sha": REVISIONS[rest], "siblings": siblings})
        elif kind == "tree" and rest in REVISIONS.values():
            sizes = {name: file.stat().st_size for name, file in files.items()}
            tree = [
                {"type": "file", "path": name, "size": size, "oid": f"{i:040x}"}
                for i, (name, size) in enumerate(sizes.items())
            ]
            self.send(request, 200, tree, rest)
        else:
            self.send(request, 404, {"error": f"Invalid rev id: {rest}"}, code="RevisionNotFound")

    @staticmethod
    def send(
        request: BaseHTTPRequestHandler, status: int, body: Any, commit: str = "", *,
        code: str = "", cut: bool = False,
    ) -> None:  # fmt: skip
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request.send_response(status)
        request.send_header("Content-Length", str(len(data)))
        request.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        for name, value in {"X-Repo-Commit": commit, "X-Error-Code": code}.items():
            if value:
                request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(data[: len(data) // 2] if cut else data)


@pytest.fixture
def hub(tiny_encoder: Path, tmp_path: Path) -> Iterator[Hub]:
    """A hub that serves the tiny encoder, with pickled weights beside the others."""
    folder = tmp_path / "served"
    shutil.copytree(tiny_encoder, folder)
    for name in ("pytorch_model.bin", "1_Pooling/pytorch_model.bin", "model.onnx", "README.md"):
        (folder / name).write_bytes(b"never to be asked for")
    hub = Hub(folder)
    yield hub
    hub.stop()


def ask(hub: Hub, tmp_path: Path, script: str, argument: str, **environment: str) -> list[Any]:
    """The lines that `script` prints in a process of its own; the hub is read at import."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    home = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url}
    quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, argument],
        env=kept | home | quiet | environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(f"{time.monotonic() - began:.1f} s", done.stderr[-500:], *hub.asked, sep="\n")
    return [json.loads(line) for line in done.stdout.splitlines()]


def find(hub: Hub, tmp_path: Path, *settings: dict[str, Any], **environment: str) -> list[Any]:
    return ask(hub, tmp_path, FIND, json.dumps(settings), **environment)


def test_a_hub_id_gives_the_vectors_of_the_same_folder(hub: Hub, tmp_path: Path) -> None:
    (vectors,) = ask(hub, tmp_path, EMBED, MODEL)
    right = Encoder(str(hub.folder)).embed(["一二三", "丁"])
    np.testing.assert_allclose(np.array(vectors), right, atol=1e-6)


def test_only_what_an_encoder_needs_is_asked_for_and_never_a_pickle(
    hub: Hub, tmp_path: Path
) -> None:
    (found,) = find(hub, tmp_path, {"path": MODEL})
    names = {line.rpartition("/")[2] for line in hub.asked if "/resolve/" in line}
    assert {"model.safetensors", "config.json", "tokenizer.json", "modules.json"} <= names
    assert not {"pytorch_model.bin", "model.onnx", "README.md"} & names
    assert not list(Path(found["folder"]).rglob("*.bin"))


def test_a_revision_is_asked_of_the_hub_and_goes_into_the_fingerprint(
    hub: Hub, tmp_path: Path
) -> None:
    main, v2, commit = find(
        hub, tmp_path, {"path": MODEL}, {"path": MODEL, "revision": "v2"},
        {"path": MODEL, "revision": REVISIONS["v2"]},
    )  # fmt: skip
    assert f"GET /api/models/{MODEL}/revision/main" in hub.asked
    assert f"GET /api/models/{MODEL}/revision/v2" in hub.asked
    assert f"HEAD /{MODEL}/resolve/{REVISIONS['v2']}/config.json" in hub.asked
    assert len({found["fingerprint"]["digest"] for found in (main, v2, commit)}) == 3
    assert main["fingerprint"]["weights"] == v2["fingerprint"]["weights"]
    assert (main["fingerprint"]["revision"], v2["fingerprint"]["revision"]) == (None, "v2")
    local = find_encoder(EncoderSettings(path=str(hub.folder))).fingerprint
    assert main["fingerprint"]["digest"] == local["digest"]


def test_what_the_hub_does_not_have_is_one_clear_line(hub: Hub, tmp_path: Path) -> None:
    revision, model = find(
        hub, tmp_path, {"path": MODEL, "revision": "v9"}, {"path": "nobody/nothing"}
    )
    assert revision["error"].startswith(f"{MODEL} at revision v9: not to be had from the hub (")
    assert "Revision Not Found" in revision["error"]
    assert model["error"].startswith("nobody/nothing: not to be had from the hub (")
    assert "Repository Not Found" in model["error"]
    for found in (revision, model):
        assert WAYS in found["error"]
        assert "\n" not in found["error"]


@pytest.mark.parametrize("status", [401, 403, 404, 500, "html"])
def test_a_hub_that_answers_otherwise_is_one_clear_line(
    hub: Hub, tmp_path: Path, status: int | str
) -> None:
    hub.status = status
    (found,) = find(hub, tmp_path, {"path": MODEL})
    assert found["error"].startswith(f"{MODEL}: not to be had from the hub (")
    assert status == "html" or str(status) in found["error"]
    assert found["error"].endswith(WAYS)
    assert "\n" not in found["error"]


@pytest.mark.parametrize("why", ["stopped", "silent", "offline"])
def test_without_hub_and_copy_the_line_says_so_and_names_the_alternatives(
    hub: Hub, tmp_path: Path, why: str
) -> None:
    environment = {"HF_HUB_ETAG_TIMEOUT": "1"}
    if why == "stopped":
        hub.stop()
    elif why == "silent":
        hub.status = "silent"
    else:
        environment |= {"HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    (found,) = find(hub, tmp_path, {"path": MODEL}, **environment)
    assert found["error"] == (
        f"{MODEL}: {hub.url} can't be reached and there is no complete local copy; {WAYS},"
        " or set HF_ENDPOINT"
    )
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("why", ["stopped", "silent", 500])
def test_a_second_load_needs_no_hub(hub: Hub, tmp_path: Path, why: int | str) -> None:
    (first,) = find(hub, tmp_path, {"path": MODEL})
    if why == "stopped":
        hub.stop()
    else:
        hub.status = why
    (second,) = find(hub, tmp_path, {"path": MODEL}, HF_HUB_ETAG_TIMEOUT="1")
    assert second == first


def test_a_download_that_breaks_off_is_one_clear_line_and_leaves_no_model(
    hub: Hub, tmp_path: Path
) -> None:
    hub.cut = "model.safetensors"
    (found,) = find(hub, tmp_path, {"path": MODEL})
    assert "peer closed connection" in found["error"]
    assert WAYS in found["error"]
    hub.stop()
    (again,) = find(hub, tmp_path, {"path": MODEL})
    assert "there is no complete local copy" in again["error"]
