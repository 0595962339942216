"""S3 over HTTP for the tests: two real servers in processes of their own, and a proxy that breaks.

with MotoServer() as server, FaultProxy(server.endpoint_url) as proxy:
    proxy.inject("503", times=2, match="PUT .*/docs")
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import botocore.config
import botocore.session

from tests.ports import free_port
from tests.s3_proxy import FaultProxy

__all__ = [
    "ACCESS_KEY",
    "SECRET_KEY",
    "FaultProxy",
    "MotoServer",
    "WeedServer",
    "client",
]

ACCESS_KEY, SECRET_KEY = "test", "testtest"

# Ends the server with the test process, however that ends: its standard input closes then.
GUARD = """
import subprocess, sys
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
try:
    sys.stdin.read()
finally:
    server.kill()
    server.wait()
"""


def client(endpoint_url: str, **options: Any) -> Any:
    """A botocore client with the servers' own key: for what a test prepares and checks."""
    config = botocore.config.Config(
        s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, read_timeout=10
    )
    options = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY, **options}
    return botocore.session.get_session().create_client(
        "s3", region_name="us-east-1", endpoint_url=endpoint_url, config=config, **options
    )


class S3Server:
    """A server in a process of its own; `endpoint_url` answers inside the `with`."""

    endpoint_url: str
    start_seconds = 60

    def command(self, port: int, folder: Path) -> list[str]:
        raise NotImplementedError

    def __enter__(self) -> Any:
        self._folder = Path(tempfile.mkdtemp(prefix="s3-"))
        port = free_port()
        self.endpoint_url = f"http://127.0.0.1:{port}"
        with (self._folder / "log").open("wb") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-c", GUARD, *self.command(port, self._folder)],
                stdin=subprocess.PIPE, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait(timeout=30)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait(self) -> None:
        asked, until = client(self.endpoint_url), time.monotonic() + self.start_seconds
        while True:
            try:
                asked.create_bucket(Bucket="ready")
                asked.put_object(Bucket="ready", Key="ready", Body=b"yes")
                break
            except Exception as error:
                if time.monotonic() > until:
                    told = (self._folder / "log").read_text("utf-8", "replace")[-2_000:]
                    raise RuntimeError(f"{type(self).__name__} didn't start:\n{told}") from error
                time.sleep(0.2)
        asked.close()


class MotoServer(S3Server):
    """moto's server: quick to start, and asks for no valid credentials."""

    def command(self, port: int, folder: Path) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]


class WeedServer(S3Server):
    """SeaweedFS: a store with disks, that checks keys, signatures and rights.

    The key `reader` may only read and list.
    """

    def command(self, port: int, folder: Path) -> list[str]:
        def identity(name: str, *actions: str) -> dict[str, Any]:
            secret = {"accessKey": name, "secretKey": SECRET_KEY}
            return {"name": name, "credentials": [secret], "actions": list(actions)}

        people = [
            identity(ACCESS_KEY, "Admin", "Read", "Write", "List", "Tagging"),
            identity("reader", "Read", "List"),
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": people}), "utf-8")
        (folder / "data").mkdir()
        weed = Path(sys.executable).parent / "weed"
        return [
            str(weed), "-logtostderr=true", "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1", "-s3", f"-s3.port={port}", f"-s3.config={folder / 's3.json'}",
            f"-master.port={free_port()}", f"-volume.port={free_port()}",
            f"-filer.port={free_port()}", "-volume.max=500",
            "-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0", "-s3.port.lance=0",
        ]  # fmt: skip
