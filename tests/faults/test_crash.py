"""Processes killed in the middle of a fill: 30 and 31 of the catalogue in short, and figures.

What a kill may cost is a figure, and bench/restart.py measures it: some tenths of a percent of the
blob fetched twice, with connections of 25 MB/s. Here other tests run beside, and what a socket
holds when its reader is late counts too: a tenth is the bound.
"""

import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.injecting import crashing_call
from tests.faults.setting import (
    MIB,
    PATIENT,
    REPOSITORY,
    Setting,
    new_content,
    of_blobs,
    running_setting,
)
from tests.faults.streaming import Cold, Stream
from tests.faults.watching import (
    FILLER,
    MIRROR,
    assert_committed_right,
    eventually,
    listed,
    running,
    with_filler,
)
from tests.parts.mirror import Mirror, upstream_at
from tests.parts.nginx import Front
from tests.parts.processes import tree
from tests.parts.registry import Registry
from tests.parts.registry_api import RegistryApi

SIZE = 256 * MIB


@dataclass(frozen=True, slots=True)
class Limited:
    """A registry that gives 25 MB/s to a connection, and a blob of it."""

    front: Front
    content: bytes
    digest: str

    def bytes_sent(self) -> int:
        return sum(access.body_bytes for access in self.front.accesses() if access.of_blob)

    def client(self, mirror: Mirror, bounds: str | None = None) -> Stream:
        return Stream(mirror.port, self.front.host, self.digest, self.content, bounds)


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Limited]:
    directory = tmp_path_factory.mktemp("limited")
    with Registry(directory / "registry") as registry:
        blobs = registry.directory / "storage" / "docker" / "registry" / "v2" / "blobs"
        content = new_content(SIZE)
        digest = RegistryApi(registry.url).push_blob(REPOSITORY, content)
        with Front(directory / "front", registry.url, blobs=blobs, limit_rate=25_000_000) as front:
            yield Limited(front, content, digest)


class Restarted(Mirror):
    """A mirror whose processes are to be back in 3 s, or as soon as this machine can start them."""

    ready_seconds = 3.0

    def start(self) -> None:
        began = time.monotonic()
        super().start()
        self.ready_seconds = max(self.ready_seconds, 2 * (time.monotonic() - began))

    def ready_again(self, began: float) -> None:
        """Wait until both processes answer, and hold that to the time allowed."""

        def ready() -> bool:
            try:
                return self.ready() and self.ask("/cache") is not None
            except OSError:
                return False

        eventually(ready, 60, "it serves again")
        assert time.monotonic() - began <= self.ready_seconds


@pytest.fixture
def mirror(tmp_path: Path, limited: Limited) -> Iterator[Restarted]:
    limited.front.clear()
    with Restarted(tmp_path, {limited.front.host: upstream_at(limited.front.url)}) as running:
        yield running


def assert_little_fetched_twice(limited: Limited) -> None:
    time.sleep(0.2)  # nginx writes a line when it has let go of the connection
    sent = limited.bytes_sent()
    assert sent <= 1.1 * SIZE, f"{(sent - SIZE) / SIZE:.1%} fetched twice"


def test_f31_the_filler_is_killed_and_no_client_notices(
    limited: Limited, mirror: Restarted
) -> None:
    client = limited.client(mirror).reach(SIZE // 3)
    killed = mirror.process_id(FILLER)
    began = time.monotonic()
    os.kill(killed, signal.SIGKILL)
    mirror.ready_again(began)
    assert client.finish().right()
    assert mirror.process_id(FILLER) != killed
    assert_little_fetched_twice(limited)
    assert assert_committed_right(mirror, limited.digest, limited.content) == SIZE
    assert listed(mirror)[limited.digest]["verified"]


def test_f31_the_mirror_is_killed_and_its_clients_go_on_where_they_were(
    limited: Limited, mirror: Restarted
) -> None:
    client = limited.client(mirror).reach(SIZE // 3)
    killed = mirror.process_id(MIRROR)
    began = time.monotonic()
    os.kill(killed, signal.SIGKILL)
    assert not client.finish().right()
    eventually(mirror.ready, 20, "it serves again")
    rest = limited.client(mirror, f"{client.received}-")
    mirror.ready_again(began)
    assert rest.finish().right()
    assert_little_fetched_twice(limited)
    assert assert_committed_right(mirror, limited.digest, limited.content) == SIZE


def test_f31_the_launcher_is_killed_and_everything_with_it(
    limited: Limited, mirror: Restarted
) -> None:
    client = limited.client(mirror).reach(SIZE // 3)
    processes = tree(mirror.running.pid)
    assert len(processes) == 3
    mirror.running.signal(signal.SIGKILL)
    assert not client.finish().right()
    eventually(
        lambda: not any(Path(f"/proc/{pid}/fd").exists() for pid in processes[1:]),
        5,
        "its children end with it",
    )
    assert assert_committed_right(mirror, limited.digest, limited.content) > SIZE // 4
    mirror.stop()
    began = time.monotonic()
    mirror.start()
    mirror.ready_again(began)
    # At least this was written; what is reserved may be more.
    assert listed(mirror)[limited.digest]["allocated"] > SIZE // 4, "the quota knows of it"
    assert limited.client(mirror, f"{client.received}-").finish().right()
    assert_little_fetched_twice(limited)
    assert assert_committed_right(mirror, limited.digest, limited.content) == SIZE


def test_f31_the_filler_is_killed_again_and_again(tmp_path: Path) -> None:
    noise = random.Random(31)
    with running_setting(tmp_path, fresh=1, fetch=PATIENT) as setting:
        blob = Cold(setting, 24 * MIB, of_blobs(rate=2 * MIB))
        client = blob.client()
        for _ in range(3):
            client.reach(client.received + noise.randrange(100_000, 3 * MIB))
            # What the mirror had may be enough for the client while the filler is started again.
            os.kill(running(setting.mirror, FILLER), signal.SIGKILL)
            assert_committed_right(setting.mirror, blob.digest, blob.content)
        assert client.finish().right()
        assert blob.upstream.blob_bytes_sent() < 1.5 * len(blob.content)
        blob.pull_from_cache()


@pytest.fixture(scope="module")
def crashing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    with running_setting(
        tmp_path_factory.mktemp("crashing"),
        fresh=8,
        fetch=PATIENT,
        settings={"cache": {"extent_size": "1MiB"}},
    ) as running:
        yield running


@pytest.mark.parametrize(
    ("calls", "number"),
    [("ftruncate", 1), ("?rename,?renameat,?renameat2", 1), ("fallocate", 2), ("pwrite64", 5)],
)
def test_f30_a_filler_killed_at_a_system_call_leaves_nothing_wrong(
    crashing: Setting, tmp_path: Path, calls: str, number: int
) -> None:
    blob = Cold(crashing, 6 * MIB)
    killed = crashing.mirror.process_id(FILLER)
    with crashing_call(killed, calls, number, tmp_path / "strace.log"):
        client = blob.client()
        eventually(lambda: not Path(f"/proc/{killed}/fd/0").exists(), 10, "it is killed")
    assert client.finish().right()
    assert assert_committed_right(crashing.mirror, blob.digest, blob.content) == len(blob.content)
    blob.pull_from_cache()
    with_filler(crashing.mirror, lambda filler: filler.call({"type": "figures"}))
