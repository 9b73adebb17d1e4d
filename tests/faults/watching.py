"""What a test sees of the mirror's processes and of an upstream's record."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from headstart.store.cached_blob import CachedBlob
from headstart.store.fill_client import FillClient
from headstart.store.geometry import UNIT_SIZE
from headstart.store.layout import STAND_INS
from tests.doubles.scripted_upstream import RecordedRequest
from tests.parts.mirror import Mirror
from tests.parts.processes import tree

FILLER, MIRROR = "proxy.fill.process", "proxy.mirror"
T = TypeVar("T")


def eventually(condition: Callable[[], object], patience: float, what: str) -> None:
    """Return when ``condition`` holds; AssertionError, which says ``what``, when it does not."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience} s: {what}"
        time.sleep(0.02)


def running(mirror: Mirror, module: str, patience: float = 20.0) -> int:
    """Process id of a child that may just be started again."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return mirror.process_id(module)
        except ProcessLookupError:
            assert time.monotonic() < deadline, f"{module} does not run after {patience} s"
            time.sleep(0.02)


def opened_files(pid: int, below: Iterable[Path]) -> list[str]:
    """The files below these directories that a process has open or mapped, deleted ones too."""
    roots = tuple(f"{path}/{kind}" for path in below for kind in ("blobs", STAND_INS))
    found = []
    try:
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            try:
                found.append(os.readlink(descriptor.path))
            except OSError:
                continue
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        found += [line.split(maxsplit=5)[5] for line in lines if "/" in line]
    except FileNotFoundError:
        return []
    return sorted(name for name in found if name.startswith(roots))


def blobs_closed(mirror: Mirror, patience: float = 20.0) -> None:
    """Wait until no process of the mirror has a blob open any more: its idle time has passed."""

    def closed() -> bool:
        return not any(opened_files(pid, mirror.stripes) for pid in tree(mirror.running.pid))

    eventually(closed, patience, "every file of every blob is closed")


def files_of(mirror: Mirror, digest: str) -> list[Path]:
    """The files of a blob, by stripe, whether they are there or not."""
    algorithm, _, name = digest.partition(":")
    return [stripe / "blobs" / algorithm / name[:2] / name for stripe in mirror.stripes]


def assert_committed_right(mirror: Mirror, digest: str, content: bytes) -> int:
    """Every byte that the maps of a blob say is here is right; how many they are."""
    files = files_of(mirror, digest)
    blob = CachedBlob(files, [file.with_name(file.name + ".map") for file in files])
    count = 0
    try:
        for start in range(0, len(content), UNIT_SIZE):
            here = blob.available(start, UNIT_SIZE)
            assert blob.read(start, here) == content[start : start + here], f"wrong at {start}"
            count += here
    finally:
        blob.close()
    return count


def listed(mirror: Mirror) -> dict[str, dict[str, Any]]:
    """What GET /cache says, by digest."""
    return {entry["digest"]: entry for entry in mirror.ask("/cache?limit=1000")["objects"]}


def asked(requests: Iterable[RecordedRequest]) -> list[tuple[int, int]]:
    """First byte and the one after the last of each range, in the order of the ranges."""
    found = []
    for request in requests:
        bounds = request.range
        assert bounds is not None and bounds[0] is not None and bounds[1] is not None, request
        found.append((bounds[0], bounds[1] + 1))
    return sorted(found)


def assert_each_byte_once(requests: Iterable[RecordedRequest], size: int) -> None:
    """These ranges are the whole blob, and none of its bytes was asked for twice."""
    position = 0
    for start, stop in asked(requests):
        assert start == position, f"bytes {min(start, position)} on: {asked(requests)}"
        position = min(stop, size)
    assert position == size, asked(requests)


def cut_short(requests: Iterable[RecordedRequest]) -> list[RecordedRequest]:
    """The ranges that ended before all of their bytes were sent."""
    return [
        request
        for request in requests
        for start, stop in asked([request])
        if request.bytes_sent < stop - start
    ]


def with_filler(mirror: Mirror, talk: Callable[[FillClient], Awaitable[T]]) -> T:
    """Run a conversation with the mirror's filler, as one more of its clients."""

    async def converse() -> T:
        path = mirror.stripes[0] / "run" / "fill.sock"
        async with asyncio.timeout(60):
            async with FillClient(path, "command") as client:
                return await talk(client)

    return asyncio.run(converse())
