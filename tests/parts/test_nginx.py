"""nginx in its roles: what it counts, how it limits, what it caches."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.doubles.certificates import Authority
from tests.parts.curl import fetch, fetch_ranges
from tests.parts.nginx import Files, Front, SlicedCache
from tests.parts.pattern import Pattern
from tests.parts.registry import Registry
from tests.parts.registry_api import RegistryApi

REPOSITORY = "team/app"
MIB = 1 << 20


def test_front_counts_ranges_and_answers_blobs_itself(parts: ExitStack, registry: Registry) -> None:
    pattern = Pattern(4 * MIB)
    digest = RegistryApi(registry.url).push_blob(REPOSITORY, pattern)
    blobs = registry.blob_file(digest).parents[3]
    fronts = [
        parts.enter_context(Front(registry.directory / "passing", registry.url)),
        parts.enter_context(Front(registry.directory / "sending", registry.url, blobs=blobs)),
    ]
    for front in fronts:
        target = f"/v2/{REPOSITORY}/blobs/{digest}"
        assert fetch(f"{front.url}/v2/").status == 200
        front.wait_for_accesses(1)
        front.clear()
        answer = fetch(front.url + target, byte_range="1048576-2097151")
        assert answer.headers["content-range"] == f"bytes 1048576-2097151/{pattern.size}"
        assert answer.headers["docker-content-digest"] == digest
        (access,) = front.wait_for_accesses(1)
        assert (access.status, access.body_bytes, access.first) == (206, MIB, MIB)
        assert (access.method, access.target, access.of_blob) == ("GET", target, True)
        assert front.blob_ranges() == [access]


@pytest.mark.parametrize("sending", [False, True], ids=["passing", "sending"])
def test_front_limits_each_connection(parts: ExitStack, registry: Registry, sending: bool) -> None:
    digest = RegistryApi(registry.url).push_blob(REPOSITORY, Pattern(8 * MIB))
    blobs = registry.blob_file(digest).parents[3] if sending else None
    front = parts.enter_context(
        Front(registry.directory / "front", registry.url, blobs=blobs, limit_rate=8 * MIB)
    )
    url = f"{front.url}/v2/{REPOSITORY}/blobs/{digest}"
    alone = fetch(url).seconds
    assert 0.8 <= alone <= 3
    halves = [(0, 4 * MIB), (4 * MIB, 8 * MIB)]
    assert fetch_ranges(url, halves, connections=2).seconds <= 0.8 * alone
    assert fetch_ranges(url, halves, connections=1).seconds >= 0.8


def test_front_speaks_tls_and_pushes_pass_through_it(
    parts: ExitStack, registry: Registry, authority: Authority
) -> None:
    front = parts.enter_context(
        Front(registry.directory / "front", registry.url, tls=authority.issue())
    )
    pattern = Pattern(3 * MIB)
    api = RegistryApi(front.url, ca_file=authority.ca_file)
    digest = api.push_blob(REPOSITORY, pattern)
    assert api.read(f"/v2/{REPOSITORY}/blobs/{digest}").digest == pattern.digest()


def test_static_files_come_in_ranges(parts: ExitStack, tmp_path: Path) -> None:
    pattern = Pattern(2 * MIB)
    (tmp_path / "files").mkdir()
    (tmp_path / "files/blob").write_bytes(b"".join(pattern.pieces()))
    files = parts.enter_context(Files(tmp_path / "nginx", tmp_path / "files"))
    output = tmp_path / "part"
    assert fetch(f"{files.url}/blob", output=output, byte_range="5000-9999").status == 206
    assert output.read_bytes() == pattern.read(5000, 5000)
    ranges = [(start, start + MIB // 2) for start in range(0, 2 * MIB, MIB // 2)]
    (tmp_path / "parts").mkdir()
    fetch_ranges(f"{files.url}/blob", ranges, connections=3, directory=tmp_path / "parts")
    for start, stop in ranges:
        assert (tmp_path / "parts" / str(start)).read_bytes() == pattern.read(start, stop - start)
    assert len({access.connection for access in files.wait_for_accesses(5)}) <= 4


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_sliced_cache_asks_for_slices_and_serves_them_without_its_upstream(
    parts: ExitStack, registry: Registry, authority: Authority, tls: bool
) -> None:
    pattern = Pattern(3 * MIB + 9)
    digest = RegistryApi(registry.url).push_blob(REPOSITORY, pattern)
    front = parts.enter_context(
        Front(registry.directory / "front", registry.url, tls=authority.issue() if tls else None)
    )
    ca_file = authority.ca_file if tls else None
    cache = parts.enter_context(
        SlicedCache(registry.directory / "cache", front.url, ca_file=ca_file)
    )
    target = f"/v2/{REPOSITORY}/blobs/{digest}"
    assert RegistryApi(cache.url).read(target).digest == digest
    ranges = [access.range for access in front.wait_for_accesses(4)]
    assert ranges == [f"bytes={at * MIB}-{at * MIB + MIB - 1}" for at in range(4)]
    front.stop()
    registry.stop()
    assert RegistryApi(cache.url).read(target).digest == digest
