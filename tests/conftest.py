"""What the tests share: a tiny encoder with random weights, and one local Ray."""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["HF_HUB_OFFLINE"] = "0"
# Threads that wait by spinning take the cores from the tests beside: up to 20 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray looks through its log files ten times a second and at its processes every five; that of a
# whole session of tests costs a minute of a core.
os.environ["RAY_LOG_MONITOR_MANY_FILES_THRESHOLD"] = "0"
os.environ["LOG_NAME_UPDATE_INTERVAL_S"] = "5"
os.environ["REPORTER_UPDATE_INTERVAL_MS"] = "60000"
if not Path("/dev/nvidiactl").exists():  # GPU kernels by Triton's interpreter; torch imports it
    os.environ["TRITON_INTERPRET"] = "1"

import pytest

if TYPE_CHECKING:
    from stella_ray.storage import StorageSettings
    from tests.s3 import FaultProxy, MotoServer, WeedServer

KEEP_WORKERS = {
    "num_workers_soft_limit": 8,
    "idle_worker_killing_time_threshold_ms": 600_000,
}
"""Idle workers serve the next run instead of being started anew: a fifth of its time."""

HAN = sorted({chr(c) for c in range(0x4E00, 0x4E00 + 2_000)} | set("查询结果"))


def make_encoder(
    folder: Path,
    *,
    seed: int = 0,
    positions: int = 1_024,
    pooling: str | None = "mean",
    layers: int = 2,
    spread: float = 0.2,
) -> Path:
    """Write a small BERT of random weights over 2,000 Chinese characters; `pooling` None leaves
    the sentence-transformers files out. At BERT's own spread of 0.02, attention hardly moves a
    vector of random weights, and wrong attention goes unseen."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    vocab = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"，。：:!?",
        *"abcdefghijklmnopqrstuvwxyz0123456789",
    ]
    vocab += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"] + HAN
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocab), hidden_size=32, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=positions,
        initializer_range=spread,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
        BertTokenizer({word: i for i, word in enumerate(vocab)}).save_pretrained(folder)
    if pooling:
        types = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(types.items())
        ]
        write(folder / "modules.json", modules)
        write(folder / "1_Pooling/config.json", {
            "word_embedding_dimension": 32, "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
        })  # fmt: skip
        write(folder / "2_Normalize/config.json", {})
        write(
            folder / "sentence_bert_config.json",
            {"max_seq_length": positions, "do_lower_case": False},
        )
        prompts = {"query": "查询: ", "passage": "结果: ", "document": "结果: "}
        write(
            folder / "config_sentence_transformers.json",
            {"prompts": prompts, "default_prompt_name": None},
        )
    return folder


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that none of them is what all wait for at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: BERT, mean pooling, stella's prefixes, 1,024 positions, vectors of 32."""
    return make_encoder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shape with other weights."""
    return make_encoder(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One local Ray of two logical CPUs for the whole session, for jobs called in this process."""
    import ray

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        # As `cluster()` does; workers keep it, and this process doesn't.
        patch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
        # The key of tests/s3.py's servers: workers keep the environment that Ray was started in.
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testtest"}
        ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error",
                 object_store_memory=512 << 20, runtime_env={"env_vars": keys},
                 _system_config=KEEP_WORKERS)  # fmt: skip
    yield
    ray.shutdown()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as a .jsonl shard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(lines, encoding="utf-8")
    return path


@pytest.fixture
def write_jsonl() -> Callable[..., Path]:
    """Write rows as a .jsonl shard: `write_jsonl(path, [{"id": …, "text": …}])`."""
    return write_rows


@dataclass(frozen=True)
class S3Place:
    """A fresh bucket on a real server over HTTP, with what opens it."""

    endpoint_url: str
    bucket: str
    storage: StorageSettings
    environment: dict[str, str]
    """What a process needs to find it, besides `storage`; this process has it too."""

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}"


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    """moto's server in a process of its own."""
    from tests.s3 import MotoServer

    with MotoServer() as server:
        yield server


@pytest.fixture(scope="session")
def weed() -> Iterator[WeedServer]:
    """SeaweedFS in a process of its own: checks keys and signatures."""
    from tests.s3 import WeedServer

    with WeedServer() as server:
        yield server


@pytest.fixture
def s3(moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> S3Place:
    """A fresh bucket on moto, its credentials in the environment."""
    return s3_place(moto.endpoint_url, monkeypatch)


@pytest.fixture
def weed_s3(weed: WeedServer, monkeypatch: pytest.MonkeyPatch) -> S3Place:
    """A fresh bucket on SeaweedFS."""
    return s3_place(weed.endpoint_url, monkeypatch)


@pytest.fixture
def s3_proxy(s3: S3Place) -> Iterator[FaultProxy]:
    """A proxy before moto that breaks what a test tells it to: see `through`."""
    from tests.s3 import FaultProxy

    with FaultProxy(s3.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def s3_fs(s3: S3Place) -> Any:
    """The filesystem of `s3`, as the code under test opens it."""
    from stella_ray.storage import filesystem

    return filesystem(s3.uri, s3.storage)[0]


def s3_place(endpoint_url: str, monkeypatch: pytest.MonkeyPatch) -> S3Place:
    """Make a bucket, and the environment for it."""
    from stella_ray.storage import StorageSettings
    from stella_ray.storage_s3 import PatientS3FileSystem
    from tests.s3 import ACCESS_KEY, SECRET_KEY, client

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    environment = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        # Neither a machine's own profile nor its role.
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "LANCE_LOG": "error",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # fsspec keeps filesystems, with the credentials of the test before.
    PatientS3FileSystem.clear_instance_cache()
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    asked = client(endpoint_url)
    asked.create_bucket(Bucket=bucket)
    asked.close()
    storage = StorageSettings(endpoint_url=endpoint_url, retry_seconds=6)
    return S3Place(endpoint_url, bucket, storage, environment)


def through(place: S3Place, proxy: FaultProxy, retry_seconds: int = 6) -> StorageSettings:
    """The settings that go to `place` through a proxy."""
    return dataclasses.replace(
        place.storage, endpoint_url=proxy.endpoint_url, retry_seconds=retry_seconds
    )
