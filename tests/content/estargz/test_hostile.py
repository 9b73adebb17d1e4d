"""Damaged and hostile blobs: refused or read, never anything else."""

import json
import random
from typing import Any

import pytest

from headstart.content.digest import Digest
from headstart.content.estargz.caps import TocCaps
from headstart.content.estargz.footer import TAIL_SIZE, parse_footer
from headstart.content.estargz.toc import parse_toc
from headstart.content.estargz.toc_file import read_toc
from headstart.content.layer.caps import LayerCaps
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.placement import Placement
from tests.content.estargz.layers import FORMS, TAR
from tests.content.estargz.memory import at_most
from tests.content.estargz.reading import EXTENT, located
from tests.content.estargz.writer import WrittenLayer, write_layer

LAYERS = [write_layer(TAR, form) for form in FORMS.values()]
CAPS = LayerCaps(entries=200, metadata_bytes=200_000)
TOC_CAPS = TocCaps(json_bytes=200_000, entry_bytes=5000, chunks=200)

KEYS = ["name", "type", "size", "offset", "chunkOffset", "chunkSize", "chunkDigest", "innerOffset"]
KEYS += ["mode", "uid", "linkName", "modtime", "xattrs", "digest", "endOffset", "devMajor"]
VALUES: list[object] = [None, True, 0, 1, -1, 511, 512, 4096, 1 << 32, 1 << 63, 1 << 64, 10**30]
VALUES += [1.5, "", "a", "..", "/", ".wh.a", ".wh..wh..opq", "reg", "chunk", "dir", "hardlink"]
VALUES += ["\ufffd", "\ud800", "a\0b", "etc/first", "x" * 300, "d/" * 300, [], {}, {"user.a": "="}]


def outcome(layer: WrittenLayer, toc: bytes, source: random.Random) -> str | None:
    """Why a TOC is refused; None when it is read."""
    location, _ = located(layer)
    placement = Placement(EXTENT, source.choice([1, 2]))
    try:
        toc_ = parse_toc(toc, Digest.of(toc), location, placement, CAPS, TOC_CAPS)
    except LayerRefused as refused:
        reason = str(refused)
        assert reason and "\n" not in reason and len(reason) < 1000
        return reason
    # What is read can be used: members and chunks lie in the blob and on the device.
    previous = 0
    for number in range(toc_.chunks.members):
        start, stop, chunks = toc_.chunks.member(number)
        assert previous == start < stop <= len(layer.blob)
        previous = stop
        for index in chunks:
            chunk = toc_.chunks.chunk(index)
            assert chunk.device_offset + chunk.size <= toc_.device_size
            assert index in toc_.chunks.chunks_covering(
                chunk.device_offset, chunk.device_offset + 1
            )
        assert len(list(toc_.chunks.spans(number))) >= 1
    return None


def mutated_entries(toc: bytes, source: random.Random) -> bytes:
    """Entries with other values, in another order, left out, doubled."""
    document = json.loads(toc)
    entries: list[dict[str, Any]] = document["entries"]
    for _ in range(source.randrange(1, 4)):
        at = source.randrange(len(entries))
        action = source.randrange(6)
        if action == 0:
            entries[at][source.choice(KEYS)] = source.choice(VALUES)
        elif action == 1:
            entries[at].pop(source.choice(list(entries[at])), None)
        elif action == 2:
            entries.insert(source.randrange(len(entries)), dict(entries[at]))
        elif action == 3 and len(entries) > 2:
            del entries[at]
        elif action == 4:
            other = source.randrange(len(entries))
            entries[at], entries[other] = entries[other], entries[at]
        else:
            numbers = [key for key, value in entries[at].items() if type(value) is int]
            if numbers:
                entries[at][source.choice(numbers)] += source.choice([-1, 1, 512, -512, 1 << 40])
        if not entries[at : at + 1] or not entries[at]:
            break
    return json.dumps(document).encode()


def mutated_bytes(content: bytes, source: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(source.randrange(1, 5)):
        at = source.randrange(len(damaged))
        action = source.randrange(4)
        if action == 0:
            damaged[at] = source.choice(b'\0\xff{}[]",:\\019-eE \n')
        elif action == 1:
            del damaged[at : at + source.choice([1, 10, 200])]
        elif action == 2:
            stop = at + source.choice([1, 50, 300])
            damaged[at:at] = damaged[at:stop]
        else:
            damaged[at] ^= 1 << source.randrange(8)
        if not damaged:
            return b""
    return bytes(damaged)


def survive_tocs(seeds: range) -> tuple[int, int]:
    """How many mutated TOCs were read, and how many refused."""
    read = refused = 0
    for seed in seeds:
        source = random.Random(seed)
        layer = source.choice(LAYERS)
        mutate = mutated_entries if source.random() < 0.7 else mutated_bytes
        if outcome(layer, mutate(layer.toc, source), source) is None:
            read += 1
        else:
            refused += 1
    return read, refused


def survive_blobs(seeds: range) -> tuple[int, int]:
    """The same for mutated ends of blobs: what is read is what was announced."""
    read = refused = 0
    for seed in seeds:
        source = random.Random(seed)
        layer = source.choice(LAYERS)
        location, announced = located(layer)
        at = location.offset if source.random() < 0.5 else len(layer.blob) - TAIL_SIZE
        blob = layer.blob[:at] + mutated_bytes(layer.blob[at:], source)
        try:
            found = parse_footer(blob[-TAIL_SIZE:], len(blob), TOC_CAPS)
            assert 0 <= found.offset < found.stop < len(blob)
            file = read_toc(blob[found.offset : found.stop], found, announced, TOC_CAPS)
            placement = Placement(EXTENT, 1)
            parse_toc(file.json, announced.json_digest, found, placement, CAPS, TOC_CAPS)
        except LayerRefused as reason:
            assert "\n" not in str(reason)
            refused += 1
        else:
            assert file.json == layer.toc
            read += 1
    return read, refused


def test_damaged_blobs_are_refused_or_read() -> None:
    read, refused = survive_blobs(range(2000))
    # Few bytes there say nothing: times in gzip headers.
    assert read > 3
    assert refused > 1000


@pytest.mark.soak
def test_many_damaged_blobs_are_refused_or_read() -> None:
    read, refused = survive_blobs(range(10_000, 110_000))
    assert read > 200
    assert refused > 50_000


def test_millions_of_files_end_at_a_cap_with_little_memory() -> None:
    entries = b",".join(b'{"name":"%x","type":"dir"}' % number for number in range(200_000))
    toc = b'{"version":1,"entries":[' + entries + b"]}"
    location, _ = located(LAYERS[0])
    same = b'{"version":1,"entries":[' + b'{"name":"a","type":"dir"},' * 200_000
    caps = LayerCaps(entries=10_000)
    for content in (toc, same):
        expected = Digest.of(content)
        with at_most(24 << 20), pytest.raises(LayerRefused, match="more than 10000 files"):
            parse_toc(content, expected, location, Placement(EXTENT, 1), caps)


def test_damaged_tocs_are_refused_or_read() -> None:
    read, refused = survive_tocs(range(2000))
    # Both ways are taken often enough to mean something.
    assert read > 200
    assert refused > 500


@pytest.mark.soak
def test_many_damaged_tocs_are_refused_or_read() -> None:
    read, refused = survive_tocs(range(10_000, 110_000))
    assert read > 10_000
    assert refused > 25_000
