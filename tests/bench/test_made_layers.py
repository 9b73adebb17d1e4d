"""Layers that benchmarks make of directories are what they say, and are kept only when whole."""

import gzip
import hashlib
import io
import random
import tarfile
from pathlib import Path

import pytest

from bench.estargz import CHUNK, estargz
from bench.kept import kept
from bench.tars import FAST, USUAL, TarLayer, gzipped, write_tar
from headstart.content.digest import Digest
from headstart.content.estargz.announced import announced_toc
from headstart.content.estargz.caps import DEFAULT_TOC_CAPS
from headstart.content.estargz.footer import TAIL_SIZE, parse_footer
from headstart.content.estargz.toc_file import read_toc
from tests.content.estargz.reading import opened
from tests.content.estargz.writer import NO_PREFETCH, WrittenLayer


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all sizes: none, some bytes, whole blocks, several chunks."""
    made = tmp_path_factory.mktemp("tree")
    chance = random.Random(3)
    for number, size in enumerate((0, 1, 511, 512, 513, 40_000, CHUNK, 2 * CHUNK + 77)):
        place = made / f"d{number % 3}" / "deeper"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"file{number}").write_bytes(chance.randbytes(size))
    (made / ("n" * 130)).write_bytes(b"a name that ustar has no room for")
    return made


def expected(directory: Path, below: str) -> dict[str, bytes]:
    return {
        f"{below}/{path.relative_to(directory)}": path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def files_of(tar: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        found = {}
        for entry in archive:
            content = archive.extractfile(entry) if entry.isfile() else None
            if content is not None:
                found[entry.name] = content.read()
        return found


def check_named(layer: TarLayer, tar: bytes) -> None:
    blob = layer.file.read_bytes()
    assert layer.digest == f"sha256:{hashlib.sha256(blob).hexdigest()}"
    assert layer.diff_id == f"sha256:{hashlib.sha256(tar).hexdigest()}"
    assert (layer.size, layer.tar_size) == (len(blob), len(tar))


@pytest.mark.parametrize("level", [FAST, USUAL])
def test_a_gzip_layer_has_the_directorys_files(directory: Path, tmp_path: Path, level: int) -> None:
    write_tar(directory, "usr/lib", tmp_path / "tar")
    layer = gzipped(tmp_path / "tar", tmp_path / "layer", level)
    tar = gzip.decompress(layer.file.read_bytes())
    check_named(layer, tar)
    assert files_of(tar) == expected(directory, "usr/lib")


@pytest.mark.parametrize("level", [FAST, USUAL])
def test_an_estargz_layer_is_what_its_toc_says(directory: Path, tmp_path: Path, level: int) -> None:
    write_tar(directory, "usr/lib", tmp_path / "tar")
    layer = estargz(tmp_path / "tar", tmp_path / "layer", level)
    blob = layer.file.read_bytes()
    tar = gzip.decompress(blob)
    check_named(layer, tar)
    location = parse_footer(blob[-TAIL_SIZE:], len(blob))
    announced = announced_toc(layer.annotations, len(blob))
    assert announced is not None
    toc = read_toc(blob[location.offset : location.stop], location, announced, DEFAULT_TOC_CAPS)
    assert announced.json_digest == Digest.of(bytes(toc.json))
    written = WrittenLayer(blob, bytes(toc.json), layer.annotations, tar, "gzip")
    reading = opened(written)
    assert reading.toc.no_prefetch
    reading.verify()
    assert len(reading.device()) == reading.toc.device_size
    files = files_of(tar)
    assert files.pop(NO_PREFETCH.decode()) == b"\x0f"
    files.pop("stargz.index.json")
    assert files == expected(directory, "usr/lib")


def test_names_are_in_order(directory: Path, tmp_path: Path) -> None:
    write_tar(directory, "", tmp_path / "tar")
    with tarfile.open(tmp_path / "tar") as archive:
        names = [entry.name for entry in archive]
    assert names == sorted(names, key=lambda name: name.split("/"))
    assert "d0/deeper" in names


def test_what_was_made_is_kept_and_what_failed_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls: list[Path] = []

    def make(place: Path) -> None:
        calls.append(place)
        (place / "file").write_bytes(b"made")
        if len(calls) == 1:
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        kept("thing", make)
    assert list((tmp_path / "headstart-bench").iterdir()) == []
    assert [(kept("thing", make) / "file").read_bytes() for _ in range(2)] == [b"made"] * 2
    assert len(calls) == 2
