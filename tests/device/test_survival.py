"""The mount outlives its daemon, its supervisor and its upgrades: verified reads all the while."""

import errno
import os
import random
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from headstart.store.geometry import MIB
from mount.device.places import MountPlaces
from mount.mounting import mount_table, system_calls
from mount.supervisor import control
from mount.supervisor.daemon_process import DaemonProcess
from mount.supervisor.fuse_connection import AnswerDiffers, FuseConnection
from mount.supervisor.succession import Settings, Succession
from tests.device.layer_filler import LayerFiller, bring, hold, wait_until
from tests.device.layers import StoredLayer, stored_layer
from tests.device.mounted import Mounted, Reader, fuse_connections, mounted

SIZE = 24 * MIB
KILLS = 10


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(tmp_path_factory.mktemp("survival")) as running:
        yield running


@pytest.fixture(scope="module")
def stored(mount: Mounted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoredLayer]:
    directory = tmp_path_factory.mktemp("store")
    with stored_layer(directory / "large", SIZE, extent_size=8 * MIB) as layer:
        layer.bring()
        yield layer


@pytest.fixture
def device(mount: Mounted, stored: StoredLayer) -> Path:
    mount.ensure()
    return mount.add(stored)[0]


def _kill_under_reads(mount: Mounted, device: Path, truth: Path, kills: int) -> dict[str, float]:
    chance = random.Random(1)
    with Reader(device, truth) as reader:
        for _ in range(kills):
            time.sleep(chance.uniform(0.05, 0.3))
            mount.kill_daemon()
        time.sleep(0.1)
        return reader.finish()


def test_f44_a_killed_daemon_is_not_noticed(
    mount: Mounted, device: Path, stored: StoredLayer
) -> None:
    found = _kill_under_reads(mount, device, stored.devices[0], KILLS)
    print(f"{KILLS} kills: {found}")
    assert found["reads"] > 2 * KILLS
    assert mount.status("restarts") >= KILLS
    # By SIGKILL, or while it waited for itself.
    assert mount.log().count(" died ") >= KILLS


@pytest.mark.soak
def test_f44_a_daemon_killed_two_hundred_times_is_not_noticed(
    mount: Mounted, device: Path, stored: StoredLayer
) -> None:
    _kill_under_reads(mount, device, stored.devices[0], 200)


def test_f44_a_read_that_waits_for_bytes_outlives_its_daemon(
    mount: Mounted, device: Path, tmp_path: Path
) -> None:
    with stored_layer(tmp_path / "waiting", MIB) as waiting:
        mount.filler.on_want = hold
        path = mount.add(waiting)[0]
        before = len(mount.filler.held)
        with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as reader:
            mount.filler.until_held(before + 1)
            daemon = mount.status("daemon")
            mount.filler.on_want = bring
            os.kill(daemon, signal.SIGKILL)
            assert reader.communicate(timeout=60)[0] == waiting.content
        assert reader.returncode == 0


def test_f45_a_stopped_daemon_is_replaced(
    mount: Mounted, device: Path, stored: StoredLayer
) -> None:
    with Reader(device, stored.devices[0]) as reader:
        daemon = mount.status("daemon")
        os.kill(daemon, signal.SIGSTOP)
        wait_until(lambda: mount.replaced(daemon))
        time.sleep(0.1)
        reader.finish()
    assert "the mount had not answered for" in mount.log()


def test_f49_upgrades_and_rollbacks_are_not_noticed(
    mount: Mounted, device: Path, stored: StoredLayer
) -> None:
    restarts = mount.status("restarts")
    with Reader(device, stored.devices[0]) as reader:
        for deadline in (50.0, 40.0, 50.0):
            before = mount.status("daemon")
            control.upgrade(mount.root, mount.filler.path, deadline)
            assert mount.replaced(before)
            assert control.status(mount.root)["read_deadline_seconds"] == deadline
        found = reader.finish()
    assert found["reads"] > 0
    assert mount.status("restarts") == restarts


def test_f49_an_upgrade_does_not_wait_for_reads_that_wait(
    mount: Mounted, device: Path, tmp_path: Path
) -> None:
    with stored_layer(tmp_path / "upgraded", MIB) as waiting:
        mount.filler.on_want = hold
        path = mount.add(waiting)[0]
        before = len(mount.filler.held)
        with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as reader:
            mount.filler.until_held(before + 1)
            mount.filler.on_want = bring
            control.upgrade(mount.root, mount.filler.path, 60.0)
            assert reader.communicate(timeout=60)[0] == waiting.content
        assert reader.returncode == 0


def test_another_setting_is_taken_over_when_the_mount_is_adopted(
    mount: Mounted, device: Path
) -> None:
    pid, daemon = mount.status("pid"), mount.status("daemon")
    mount.ensure(deadline=33.0)
    assert mount.status("pid") == pid
    assert mount.status("daemon") != daemon
    assert control.status(mount.root)["read_deadline_seconds"] == 33.0
    daemon = mount.status("daemon")
    mount.ensure(deadline=33.0)
    assert mount.status("daemon") == daemon


def test_a_killed_supervisor_is_not_noticed(
    mount: Mounted, device: Path, stored: StoredLayer
) -> None:
    with Reader(device, stored.devices[0]) as reader:
        supervisor, daemon = mount.status("pid"), mount.status("daemon")
        connection = control.status(mount.root)["device"]
        os.kill(supervisor, signal.SIGKILL)
        mount.ensure()
        wait_until(lambda: mount.replaced(daemon))
        reader.finish()
    assert mount.status("pid") != supervisor
    assert control.status(mount.root)["device"] == connection
    assert mount.places.pid_file.read_text() == f"{mount.status('pid')}\n"
    wait_until(lambda: len(mount.processes()) == 2)


def test_a_second_supervisor_does_not_start(mount: Mounted, device: Path) -> None:
    before = mount.status("pid"), mount.status("daemon")
    second = subprocess.run(
        [sys.executable, "-m", "mount.supervisor", mount.root, mount.filler.path, "60"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 3
    assert "another supervisor runs" in second.stderr
    assert (mount.status("pid"), mount.status("daemon")) == before


def test_nothing_is_stopped_while_a_file_is_open(
    mount: Mounted, device: Path, stored: StoredLayer
) -> None:
    with device.open("rb") as file:
        with pytest.raises(control.DevicesInUse, match="in use"):
            control.stop(mount.root)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read(MIB) == stored.content[:MIB]
        os.kill(mount.status("pid"), signal.SIGTERM)  # as a service manager does
        wait_until(lambda: len(mount.processes()) == 1)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read(MIB) == stored.content[MIB : 2 * MIB]
        mount.ensure()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read(MIB) == stored.content[2 * MIB : 3 * MIB]


def test_a_connection_that_the_kernel_has_ended_is_replaced(
    mount: Mounted, device: Path, stored: StoredLayer
) -> None:
    number = str(control.status(mount.root)["device"]).partition(":")[2]
    mounts = mount.log().count("mount supervisor: mounted")
    with fuse_connections() as connections:
        (connections / number / "abort").write_text("1", encoding="ascii")
    mount.until_logged("mount supervisor: mounted", mounts + 1)
    wait_until(lambda: bool(control.status(mount.root)["answering"]))
    assert device.read_bytes() == stored.content
    assert mount_table.mounted_at(mount.places.device_files)[1:] == []


def test_unmounting_ends_the_supervisor_too(
    mount: Mounted, device: Path, stored: StoredLayer
) -> None:
    assert device.exists()

    def unmount() -> bool:
        try:
            system_calls.unmount(mount.places.device_files)
        except OSError as error:
            assert error.errno == errno.EBUSY  # somebody looks whether it answers
            return False
        return True

    wait_until(unmount)
    wait_until(lambda: not mount.processes())
    with pytest.raises(control.NotRunning):
        control.status(mount.root)
    mount.ensure()
    assert device.read_bytes() == stored.content


def test_f50_starting_and_stopping_leaves_nothing(
    mount: Mounted, device: Path, stored: StoredLayer
) -> None:
    control.stop(mount.root)
    baseline = _own_mounts(mount)
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        mount.ensure()
        assert device.read_bytes() == stored.content
        _replace_without_leaks(mount)
        assert device.read_bytes() == stored.content
        control.stop(mount.root)
        assert not mount.processes()
        assert _own_mounts(mount) == baseline
        assert not mount.places.socket.exists()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    with pytest.raises(control.NotRunning):
        control.status(mount.root)
    control.stop(mount.root)


def _own_mounts(mount: Mounted) -> list[mount_table.MountPoint]:
    """Mounts below the root, and of what only this project mounts; others mount what they like."""
    return [
        point
        for point in mount_table.mount_points()
        if point.path.is_relative_to(mount.root) or point.kind in ("erofs", "fuse.headstart")
    ]


def _replace_without_leaks(mount: Mounted) -> None:
    """An upgrade and a kill; neither process has more descriptors afterwards."""
    supervisor = mount.status("pid")
    before = _descriptors(supervisor), _descriptors(mount.status("daemon"))
    control.upgrade(mount.root, mount.filler.path, 60.0)
    mount.kill_daemon()
    # What asks it at the moment has a connection.
    wait_until(lambda: _descriptors(supervisor) <= before[0])
    wait_until(lambda: _descriptors(mount.status("daemon")) <= before[1])


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_start_that_fails_is_tried_again_at_once_then_with_growing_pauses(
    mount: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor sleeps until then, no longer: readers wait."""
    monkeypatch.setattr(DaemonProcess, "start", Mock(side_effect=OSError))
    with selectors.DefaultSelector() as selector:
        daemons = Succession(Mock(), mount.root, Settings("", 1.0), {}, selector)
        assert daemons.seconds_until_start(0.0) is None
        daemons.begin(Mock(), None, read=False)
        for longest in (0.0, 0.1, 0.2):
            now = time.monotonic()
            pause = daemons.seconds_until_start(now)
            assert pause is not None
            assert pause <= longest
            daemons.look(now + pause)
        daemons.end("the test is over")
        assert daemons.seconds_until_start(0.0) is None


# --- the connection by itself ---


@pytest.fixture
def connection(mount: Mounted, tmp_path: Path) -> Iterator[FuseConnection]:
    """A connection that is open, without a daemon; this process must not ask anything of it."""
    mount.ensure()
    record = FuseConnection.resume(mount.places, -1)
    assert record is not None
    answer = record.answer
    assert answer is not None
    made = FuseConnection.create(MountPlaces(tmp_path / "root"))
    try:
        made.settle(answer[:8] + made.init[8:16] + answer[16:])
        yield made
    finally:
        made.unmount(detach=True)
        made.close()


def _asks(connection: FuseConnection, path: Path) -> "subprocess.Popen[str]":
    """A process that waits for the answer to a request which somebody has read."""
    asking = subprocess.Popen(["stat", "-f", path], stderr=subprocess.PIPE, text=True)
    os.read(connection.descriptor, 1 << 21)
    return asking


def test_what_a_dead_daemon_has_read_comes_again(
    connection: FuseConnection, tmp_path: Path
) -> None:
    asking = _asks(connection, tmp_path / "root/devices-fs")
    assert connection.resend()
    again = os.read(connection.descriptor, 1 << 21)
    assert int.from_bytes(again[4:8], "little") == 17  # FUSE_STATFS
    os.write(connection.descriptor, struct.pack("<Ii8s", 16, -errno.EIO, again[8:16]))
    assert "Input/output error" in asking.communicate(timeout=30)[1]


_ASKS_AND_LIVES = """
import os, sys, threading, time
threading.Thread(target=os.statvfs, args=sys.argv[1:], daemon=True).start()
time.sleep(300)
"""


def test_a_daemon_that_died_while_it_waited_for_itself_is_followed_and_collected(
    connection: FuseConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that drops pages opens a file which its own process serves: it cannot be killed."""
    asking = [sys.executable, "-c", _ASKS_AND_LIVES, str(tmp_path / "root/devices-fs")]
    stuck = subprocess.Popen(asking)
    os.read(connection.descriptor, 1 << 21)
    owner = Mock()
    owner.nothing_to_serve.return_value = False
    monkeypatch.setattr(DaemonProcess, "start", Mock(side_effect=OSError))
    with selectors.DefaultSelector() as selector:
        daemons = Succession(owner, tmp_path, Settings("", 1.0), {}, selector)
        daemons.begin(Mock(), DaemonProcess(stuck.pid, None), read=True)
        stuck.kill()

        def followed() -> bool:
            daemons.look(time.monotonic())
            return daemons.current is None

        wait_until(followed)
        assert daemons.seconds_until_start(time.monotonic()) is not None
        assert Path(f"/proc/{stuck.pid}/stat").exists()
        assert connection.resend()
        again = os.read(connection.descriptor, 1 << 21)
        os.write(connection.descriptor, struct.pack("<Ii8s", 16, -errno.EIO, again[8:16]))

        def collected() -> bool:
            daemons.look(time.monotonic())
            return not Path(f"/proc/{stuck.pid}").exists()

        wait_until(collected)
    stuck.wait()


def test_where_it_cannot_come_again_it_is_an_error(
    connection: FuseConnection, tmp_path: Path
) -> None:
    asking = [_asks(connection, tmp_path / "root/devices-fs") for _ in range(3)]
    assert connection.fail_abandoned() == 3 + 1
    for process in asking:
        assert "Input/output error" in process.communicate(timeout=30)[1]


def test_other_options_are_refused_under_a_live_mount(connection: FuseConnection) -> None:
    answer = connection.answer
    assert answer is not None
    connection.settle(answer)
    with pytest.raises(AnswerDiffers):
        connection.settle(answer[:-1] + b"\1")


def test_a_supervisor_that_cannot_mount_says_why(tmp_path: Path) -> None:
    with mounted(tmp_path) as late:
        late.places.device_files.write_text("not a directory", encoding="ascii")
        with pytest.raises(control.SupervisorError, match="File exists"):
            late.ensure()


@pytest.mark.usefixtures("mount")
def test_the_filler_may_start_last(tmp_path: Path) -> None:
    filler = LayerFiller(tmp_path / "fill.sock")
    late = Mounted(tmp_path, filler)
    try:
        late.ensure()
        with stored_layer(tmp_path / "late", MIB) as stored:
            path = late.add(stored)[0]
            with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as reader:
                filler.start()
                assert reader.communicate(timeout=60)[0] == stored.content
    finally:
        late.clean()
        filler.stop()
