"""What survives: crashes, restarts, stale sockets, two at once."""

import asyncio
import fcntl
import os
import random
import shutil
import signal
import sqlite3
import struct
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from grpc import StatusCode

from mount.snapshotter import server
from mount.snapshotter.errors import StartFailed
from mount.snapshotter.server import serve
from mount.snapshotter.snapshot import REF_LABEL
from tests.parts.processes import run
from tests.snapshotter.layers_double import ScriptedLayers, chain_of, layers_of
from tests.snapshotter.serving import SnapshotsClient, failing, run_served
from tests.snapshotter.snapshotter_process import SnapshotterProcess

APP = layers_of("app")

EXT4_IOC_SHUTDOWN = 0x8004587D
EXT4_GOING_FLAGS_NOLOGFLUSH = 2
"""linux/fs/ext4/ext4.h: the file system stops at once, and what is in memory only is lost."""


@pytest.fixture
def process(parts: ExitStack, tmp_path: Path) -> SnapshotterProcess:
    """A snapshotter in a process of its own, which knows the image APP."""
    made = SnapshotterProcess(tmp_path)
    made.layers.add(APP, [tmp_path / "layers"] * len(APP))
    return parts.enter_context(made)


def talk(
    process: SnapshotterProcess, scenario: Callable[[SnapshotsClient], Awaitable[None]]
) -> None:
    """Run a scenario against the process."""

    async def run() -> None:
        async with SnapshotsClient(process.socket) as client:
            await client.connected()
            await scenario(client)

    asyncio.run(run())


def test_f46_what_was_answered_survives_a_sigkill(process: SnapshotterProcess) -> None:
    """Each answer is followed by a SIGKILL at once; a model says what has to be there."""
    random_numbers = random.Random(4)
    model: dict[str, int] = {}
    parents: dict[str, str] = {}

    async def step(client: SnapshotsClient) -> None:
        number = len(model) + random_numbers.randrange(1000) * 100
        committed = [name for name, kind in model.items() if kind == 3]
        parent = random_numbers.choice(["", *committed])
        match random_numbers.randrange(4):
            case 0:
                await client.prepare(f"key {number}", parent)
                model[f"key {number}"], parents[f"key {number}"] = 2, parent
            case 1:
                await client.prepare(f"key {number}", parent)
                await client.commit(f"name {number}", f"key {number}")
                model[f"name {number}"], parents[f"name {number}"] = 3, parent
            case 2:
                leaves = set(model) - set(parents.values())
                if leaves:
                    name = random_numbers.choice(sorted(leaves))
                    await client.remove(name)
                    del model[name], parents[name]
            case 3:
                name = await client.pull_layer(chain_of(APP, 0), "")
                model[name], parents[name] = 3, ""

    async def look(client: SnapshotsClient) -> None:
        found = await client.list()
        assert {info.name: info.kind for info in found} == model
        assert {info.name: info.parent for info in found} == parents

    for _ in range(8):
        talk(process, step)
        process.kill()
        process.start()
        talk(process, look)


def test_a_crash_in_the_middle_of_prepares_leaves_rows_with_directories(
    process: SnapshotterProcess,
) -> None:
    answered: list[str] = []

    async def prepare(client: SnapshotsClient) -> None:
        async def one(number: int) -> None:
            await client.prepare(f"key {number}")
            answered.append(f"key {number}")
            if len(answered) == 20:
                process.kill()

        results = await asyncio.gather(*map(one, range(60)), return_exceptions=True)
        assert any(isinstance(result, Exception) for result in results)

    async def look(client: SnapshotsClient) -> None:
        names = await client.names()
        assert set(answered) <= names
        for name in names:
            (mount,) = await client.mounts(name)
            assert os.listdir(mount.source) == []
        await client.cleanup()
        assert len(os.listdir(process.root / "snapshots")) == len(names)

    talk(process, prepare)
    process.start()
    talk(process, look)


def test_systemd_is_told_when_it_listens_and_when_it_stops(process: SnapshotterProcess) -> None:
    assert process.told.recv(100) == b"READY=1"
    process.stop()
    assert process.told.recv(100) == b"STOPPING=1"
    assert not process.socket.exists()


def test_f42_sigterm_ends_waiting_pulls_with_a_reason(process: SnapshotterProcess) -> None:
    process.layers.file(APP[0], "held").touch()

    async def scenario(client: SnapshotsClient) -> None:
        name = await client.pull_layer(chain_of(APP, 0), "")
        pull = asyncio.create_task(client.stat(name, lease="pull"))
        while not process.layers.file(APP[0], "waiting").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        running = process.running
        running.signal(signal.SIGTERM)
        async with failing(StatusCode.UNAVAILABLE, "stopping; pull again"):
            await pull
        while running.exit_status() is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert running.exit_status() == 0

    talk(process, scenario)


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(process: SnapshotterProcess) -> None:
    async def rival(root: Path) -> None:
        layers = ScriptedLayers(root)
        with pytest.raises(StartFailed, match="another process serves it"):
            await serve(process.socket, root, layers, [])

    asyncio.run(rival(process.directory / "rival"))
    process.kill()
    assert process.socket.is_socket()
    process.start()
    assert process.socket.stat().st_mode & 0o777 == 0o600


def test_f55_a_second_one_on_the_same_root_names_the_first(
    process: SnapshotterProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mount.snapshotter.server.LOCK_SECONDS", 0.0)

    async def nothing(client: SnapshotsClient) -> None:
        raise AssertionError("it has started")

    with pytest.raises(StartFailed, match=f"in use by process {process.running.pid}"):
        run_served(process.root, process.directory / "layers", nothing)


def test_it_waits_for_the_one_that_it_replaces(
    process: SnapshotterProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mount.snapshotter.server.LOCK_SECONDS", 60.0)
    refusals: list[int] = []
    once = server.try_lock

    def try_lock(descriptor: int) -> bool:
        locked = once(descriptor)
        if not locked:
            if not refusals:
                process.running.signal(signal.SIGTERM)
            refusals.append(descriptor)
        return locked

    monkeypatch.setattr("mount.snapshotter.server.try_lock", try_lock)
    run_served(process.root, process.directory / "other", _nothing_there)
    assert refusals


async def _nothing_there(client: SnapshotsClient) -> None:
    assert await client.names() == set()


def test_a_database_of_another_format_is_refused_and_kept(root: Path) -> None:
    root.mkdir()
    file = root / "snapshots.sqlite"
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version = 7")
    database.close()
    before = file.read_bytes()
    with pytest.raises(StartFailed, match="has format 7, this version reads 1"):
        run_served(root, root / "layers", _never)
    assert file.read_bytes() == before


def test_a_damaged_database_is_refused_with_the_remedy(root: Path) -> None:
    root.mkdir()
    (root / "snapshots.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(
        StartFailed, match=r"remove its images, then move the file and .*snapshots away"
    ):
        run_served(root, root / "layers", _never)


def test_a_new_database_beside_what_containers_have_written_is_refused(root: Path) -> None:
    written = root / "snapshots/3/fs/precious"
    written.parent.mkdir(parents=True)
    written.write_text("of a container")
    with pytest.raises(StartFailed, match="put the database back"):
        run_served(root, root / "layers", _never)
    assert written.read_text() == "of a container"


async def _never(client: SnapshotsClient) -> None:
    raise AssertionError("it has started")


@pytest.mark.parametrize("sign", ":,\\")
def test_a_root_that_overlayfs_cannot_name_is_refused(tmp_path: Path, sign: str) -> None:
    with pytest.raises(StartFailed, match="choose a path without"):
        run_served(tmp_path / f"a{sign}b", tmp_path / "layers", _never)


def test_a_socket_that_cannot_be_is_refused(root: Path, tmp_path: Path) -> None:
    async def start(socket: Path) -> None:
        await serve(socket, root, ScriptedLayers(tmp_path / "layers"), [])

    with pytest.raises(StartFailed, match="too long; a shorter path is needed"):
        asyncio.run(start(tmp_path / ("x" * 108)))
    file = Path(tempfile.mkdtemp(prefix="snapshots-")) / "file"
    file.write_text("not a socket")
    with pytest.raises(StartFailed, match="it is no socket"):
        asyncio.run(start(file))
    assert file.read_text() == "not a socket"
    shutil.rmtree(file.parent)


def test_f27_a_full_disk_refuses_and_recovers(parts: ExitStack, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk])
    parts.callback(run, ["umount", disk])
    filling = disk / "filling"

    async def scenario(client: SnapshotsClient) -> None:
        await client.prepare("before")
        with filling.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        async with failing(StatusCode.UNAVAILABLE, "snapshot"):
            for number in range(100):
                await client.prepare(f"during {number}", labels={"a": "x" * 4000})
        names = await client.names()
        filling.unlink()
        await client.prepare("after")
        assert await client.names() == {*names, "after"}
        for name in await client.names():
            await client.mounts(name)

    run_served(disk / "root", tmp_path / "layers", scenario)


def test_f50_many_snapshots_with_kills_leave_nothing(process: SnapshotterProcess) -> None:
    async def cycles(client: SnapshotsClient) -> None:
        for number in range(40):
            base = await client.pull_layer(chain_of(APP, 0), "")
            await client.prepare("extract", base)
            await client.commit("committed", "extract")
            await client.prepare("container", "committed")
            await client.mounts("container")
            if number == 20:
                await client.cleanup()
            for name in ("container", "committed", base):
                await client.remove(name)
        await client.cleanup()
        assert await client.names() == set()

    talk(process, cycles)
    before = process.running.descriptors()
    for _ in range(3):
        talk(process, cycles)
    # Connections are closed a little after their clients.
    process.running.wait_until(lambda: process.running.descriptors() <= before, 20)
    process.kill()
    process.start()
    talk(process, cycles)
    assert os.listdir(process.root / "snapshots") == []


def test_files_that_are_gone_at_the_start_are_named(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def prepare(client: SnapshotsClient) -> None:
        await client.prepare("container", labels={REF_LABEL: "sha256:none"})
        (root / "snapshots" / "1" / "fs").rmdir()

    async def look(client: SnapshotsClient) -> None:
        assert "the files of container are gone; remove its container" in caplog.text
        await client.remove("container")

    run_served(root, tmp_path / "layers", prepare)
    run_served(root, tmp_path / "layers", look)


def test_f32_what_was_answered_survives_a_power_cut(parts: ExitStack, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    mount = parts.enter_context(_disk(tmp_path / "disk.img", disk))
    process = SnapshotterProcess(tmp_path)
    process.root = disk / "root"
    process.layers.add(APP, [tmp_path / "layers"] * len(APP))
    names: set[str] = set()

    async def answered(client: SnapshotsClient) -> None:
        await client.prepare("extract")
        await client.commit("base", "extract", {"a": "b"})
        await client.prepare("container", "base")
        names.update({"base", "container", await client.pull_layer(chain_of(APP, 0), "")})
        descriptor = os.open(disk, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", EXT4_GOING_FLAGS_NOLOGFLUSH))
        os.close(descriptor)

    async def look(client: SnapshotsClient) -> None:
        found = {info.name: info for info in await client.list()}
        assert set(found) == names and dict(found["base"].labels) == {"a": "b"}
        (overlay,) = await client.mounts("container")
        assert os.listdir(overlay.options[-1].removeprefix("lowerdir=")) == []

    parts.enter_context(process)
    talk(process, answered)
    process.kill()
    mount()
    process.start()
    talk(process, look)


@contextmanager
def _disk(image: Path, target: Path) -> Iterator[Callable[[], None]]:
    """A small ext4 at ``target``; what is yielded mounts it again, as after a power cut."""

    def mount() -> None:
        run(["mount", "-o", "loop", image, target])

    def again() -> None:
        run(["umount", target])
        mount()

    target.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    run(["mkfs.ext4", "-q", image])
    mount()
    try:
        yield again
    finally:
        run(["umount", target])
