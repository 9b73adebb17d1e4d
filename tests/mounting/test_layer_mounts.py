"""Layers at their mount points: once, through restarts, and until their last user has gone."""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mount.device.table import DeviceTable
from mount.mounting import system_calls
from mount.mounting.errors import FilesMissing, MountRefused
from mount.mounting.layer_mounts import LayerImage, LayerMounts
from mount.mounting.modes import LayerFiles, Mode
from mount.mounting.mount_table import mounted_at, mounted_below
from mount.mounting.overlay import mount_overlay
from mount.mounting.probe import choose_mode
from tests.mounting.layer_images import known_layer, small_image
from tests.mounting.machine import DeviceFiles, hide, loop_devices, open_descriptors

BOTH = ("one", "other")


@pytest.fixture
def device_files(root: Path) -> DeviceFiles:
    return DeviceFiles(root / "devices-fs")


@pytest.fixture
def mounts(root: Path, mode: Mode, device_files: DeviceFiles) -> LayerMounts:
    return LayerMounts(root, mode, device_files)


def again(mounts: LayerMounts, root: Path, device_files: DeviceFiles) -> LayerMounts:
    """What another process sees."""
    return LayerMounts(root, mounts.mode, device_files)


def mount_incomplete(
    mounts: LayerMounts, device_files: DeviceFiles, image: LayerImage, user: str = "one"
) -> int:
    number = mounts.enter(image, user)
    device_files.show(number, image)
    mounted = mounts.mount(replace(image, verified=False), user)
    assert mounted.number == number and not mounted.direct
    return number


def test_a_whole_layer_is_mounted_from_the_stores_own_files(
    mounts: LayerMounts, root: Path, device_files: DeviceFiles
) -> None:
    mounted = mounts.mount(small_image(root / "image"), "one")
    assert mounted.direct and mounted.path == root / "layers" / str(mounted.number)
    assert (mounted.path / "file").read_bytes() == b"content\n"
    assert mounts.mounted(mounted.number)
    assert device_files.asked == 0
    assert root.joinpath("layers").stat().st_mode & 0o777 == 0o700


def test_an_incomplete_layer_is_mounted_from_the_device_file_system(
    mounts: LayerMounts, root: Path, device_files: DeviceFiles
) -> None:
    image = small_image(root / "image")
    number = mounts.enter(image, "one")
    device_files.show(number, image)
    for device in image.devices:
        device.unlink()
    mounts.mount(replace(image, verified=False), "one")
    assert (mounts.path(number) / "file").read_bytes() == b"content\n"
    assert mounts.mounted(number)


def test_a_layer_is_mounted_once_however_often_it_is_asked_for(
    mounts: LayerMounts, root: Path
) -> None:
    image = small_image(root / "image")
    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda: numbers.append(mounts.mount(image, "one").number))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers == numbers[:1] * 12
    assert len(mounted_at(mounts.path(numbers[0]))) == 1


def test_layers_have_mount_points_of_their_own(mounts: LayerMounts, root: Path) -> None:
    made = {
        name: mounts.mount(small_image(root / name, {"file": name.encode()}), "one")
        for name in BOTH
    }
    for name, mounted in made.items():
        assert (mounted.path / "file").read_text() == name
    assert [device.number for device in mounts.devices()] == sorted(
        mounted.number for mounted in made.values()
    )


def test_a_layer_stays_until_its_last_user_has_gone(mounts: LayerMounts, root: Path) -> None:
    image = small_image(root / "image")
    (number,) = {mounts.mount(image, user).number for user in BOTH}
    assert mounts.used_by("one") == [number] == mounts.used_by("other")
    assert not mounts.unmount(number, "one")
    assert not mounts.unmount(number, "one")
    assert mounts.mounted(number)
    assert mounts.unmount(number, "other")
    assert not mounts.mounted(number)
    assert not mounts.path(number).exists()
    assert mounts.devices() == [] and mounts.used_by("other") == []
    assert mounts.unmount(number, "other")


def test_a_layer_that_has_vanished_is_mounted_again(
    mounts: LayerMounts, root: Path, device_files: DeviceFiles
) -> None:
    whole = mounts.mount(small_image(root / "whole"), "one").number
    incomplete = mount_incomplete(mounts, device_files, small_image(root / "incomplete"))
    for number in (whole, incomplete):
        hide(mounts.path(number))
        assert not mounts.mounted(number)
        assert mounts.restore(number).path == mounts.path(number)
        assert (mounts.path(number) / "file").read_bytes() == b"content\n"
        assert len(mounted_at(mounts.path(number))) == 1


def test_another_file_system_on_top_is_taken_away(mounts: LayerMounts, root: Path) -> None:
    image = small_image(root / "image")
    number = mounts.mount(image, "one").number
    system_calls.mount("none", mounts.path(number), "tmpfs", 0, "")
    assert not mounts.mounted(number)
    assert mounts.mount(image, "one").number == number
    assert [point.kind for point in mounted_at(mounts.path(number))] == ["erofs"]


def test_mounts_survive_the_process(
    mounts: LayerMounts, root: Path, device_files: DeviceFiles
) -> None:
    whole = small_image(root / "whole")
    number = mounts.mount(whole, "one").number
    incomplete = mount_incomplete(mounts, device_files, small_image(root / "incomplete"))
    before = list(mounted_below(root / "layers"))
    successor = again(mounts, root, device_files)
    assert {device.number for device in successor.adopt()} == {number, incomplete}
    assert successor.mounted(number) and successor.mounted(incomplete)
    assert successor.mount(whole, "one").number == number
    assert list(mounted_below(root / "layers")) == before


def test_what_a_killed_process_has_not_put_in_its_place_goes_at_the_next_start(
    mounts: LayerMounts, root: Path, device_files: DeviceFiles
) -> None:
    image = small_image(root / "used")
    number = mounts.mount(image, "one").number
    staged = root / "layers" / f"{number}.new"
    staged.mkdir()
    for _ in range(2):
        mounts.mode.mount(LayerFiles(image.meta, image.devices), staged)
    assert [device.number for device in again(mounts, root, device_files).adopt()] == [number]
    assert [point.path.name for point in mounted_below(root / "layers")] == [str(number)]
    assert not staged.exists()


def test_what_nobody_uses_any_more_goes_at_the_next_start(
    mounts: LayerMounts, root: Path, device_files: DeviceFiles
) -> None:
    used, unused, unknown = (
        mounts.mount(small_image(root / name), "one").number
        for name in ("used", "unused", "unknown")
    )
    # As after a SIGKILL in the middle of an unmounting.
    (root / "users" / str(unused) / "one").unlink()
    shutil.rmtree(root / "users" / str(unknown))
    DeviceTable(root).remove(unknown)
    successor = again(mounts, root, device_files)
    assert [device.number for device in successor.adopt()] == [used]
    assert [point.path.name for point in mounted_below(root / "layers")] == [str(used)]


def test_after_a_boot_the_filler_has_to_look_first(
    mounts: LayerMounts, root: Path, device_files: DeviceFiles
) -> None:
    image = small_image(root / "image")
    number = mounts.mount(image, "one").number
    hide(mounts.path(number))
    record = root / "run" / "layers" / f"{number}.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "boot": "another"}))
    successor = again(mounts, root, device_files)
    with pytest.raises(FilesMissing, match="looked at first"):
        successor.restore(number)
    assert successor.mount(image, "one").number == number
    assert successor.restore(number).direct


@pytest.mark.parametrize("record", ["", "{", "[]", '{"version": 7}', '{"version": 1, "boot": ""}'])
def test_a_damaged_record_costs_a_question(mounts: LayerMounts, root: Path, record: str) -> None:
    number = mounts.mount(small_image(root / "image"), "one").number
    (root / "run" / "layers" / f"{number}.json").write_text(record)
    with pytest.raises(FilesMissing):
        mounts.restore(number)


def test_evicted_files_have_to_be_asked_for(mounts: LayerMounts, root: Path) -> None:
    image = small_image(root / "image")
    number = mounts.mount(image, "one").number
    image.meta.unlink()
    assert (mounts.path(number) / "file").read_bytes() == b"content\n"
    hide(mounts.path(number))
    with pytest.raises(FilesMissing, match=str(image.layer.digest)):
        mounts.restore(number)
    with pytest.raises(FilesMissing, match="no entry"):
        mounts.restore(number + 1)


def test_layers_move_to_a_new_device_file_system(
    mounts: LayerMounts, root: Path, device_files: DeviceFiles
) -> None:
    image = small_image(root / "image")
    number = mount_incomplete(mounts, device_files, image)
    device_files.start()
    image.devices[0].write_bytes(b"renewed\n".ljust(4096, b"\0"))
    device_files.show(number, image)
    assert (mounts.path(number) / "file").read_bytes() == b"content\n"
    assert not mounts.mounted(number)
    mounts.restore(number)
    assert mounts.mounted(number)
    assert (mounts.path(number) / "file").read_bytes() == b"renewed\n"


def test_a_layer_that_has_become_whole_is_replaced_under_its_users(
    mounts: LayerMounts, root: Path, device_files: DeviceFiles
) -> None:
    image = small_image(root / "image")
    number = mount_incomplete(mounts, device_files, image)
    target, empty = root / "target", root / "layers" / "empty"
    target.mkdir()
    empty.mkdir()
    mount_overlay(root / "layers", [mounts.path(number), empty], target, 0)
    missing: list[OSError] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            try:
                (mounts.path(number) / "file").stat()
            except OSError as error:
                missing.append(error)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        assert mounts.mount(image, "other").direct
    finally:
        ended.set()
        watcher.join()
    assert not missing
    assert len(mounted_at(mounts.path(number))) == 1
    assert sorted(path.name for path in (root / "layers").iterdir()) == [str(number), "empty"]
    (device_files.directory / f"{number}.0").write_bytes(b"")
    assert (mounts.path(number) / "file").read_bytes() == b"content\n"
    assert (target / "file").exists()
    assert mounts.mount(replace(image, verified=False), "one").direct


def test_where_a_mount_cannot_be_replaced_it_stays(
    mounts: LayerMounts,
    root: Path,
    device_files: DeviceFiles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(mounted: Path, target: Path) -> None:
        raise OSError(22, f"move_mount({target}): Invalid argument")

    image = small_image(root / "image")
    number = mount_incomplete(mounts, device_files, image)
    monkeypatch.setattr(system_calls, "move_beneath", refuse)
    before = list(mounted_below(root / "layers"))
    assert not mounts.mount(image, "one").direct
    assert list(mounted_below(root / "layers")) == before
    assert mounts.mounted(number)


def test_a_layer_made_anew_in_another_geometry_waits_for_its_users(
    mounts: LayerMounts, root: Path
) -> None:
    layer = known_layer()
    first = small_image(root / "first", layer=layer)
    number = mounts.mount(first, "one").number
    second = small_image(root / "second", {"file": bytes(9000)}, layer=layer)
    with pytest.raises(MountRefused, match="in use as layer"):
        mounts.mount(second, "other")
    mounts.unmount(number, "one")
    anew = mounts.mount(second, "other")
    assert anew.number != number
    assert (anew.path / "file").read_bytes() == bytes(9000)


def test_a_refused_mount_names_layer_call_and_reason(mounts: LayerMounts, root: Path) -> None:
    image = small_image(root / "image")
    image.meta.write_bytes(bytes(4096))
    with pytest.raises(MountRefused, match=r"sha256:.* of team/app .*mount\(.*Invalid argument"):
        mounts.mount(image, "one")


def test_a_mount_point_in_use_goes_with_its_last_user(mounts: LayerMounts, root: Path) -> None:
    number = mounts.mount(small_image(root / "image"), "one").number
    before = loop_devices()
    with (mounts.path(number) / "file").open("rb") as file:
        assert mounts.unmount(number, "one")
        assert not mounted_at(mounts.path(number))
        assert file.read() == b"content\n"
    assert mounts.mode.name == "file" or len(before - loop_devices()) == 2


def test_two_processes_wait_for_each_other(
    mounts: LayerMounts, root: Path, device_files: DeviceFiles
) -> None:
    image = small_image(root / "image")
    number = mounts.mount(image, "one").number
    program = (
        "import sys; from pathlib import Path\n"
        "from mount.mounting.locks import NumberLocks\n"
        f"with NumberLocks(Path({str(root / 'run' / 'layers.lock')!r})).held({number}):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdout.readline()
        ended = threading.Event()

        def unmount() -> None:
            mounts.unmount(number, "one")
            ended.set()

        thread = threading.Thread(target=unmount)
        thread.start()
        try:
            assert not ended.wait(0.1)
            assert mounts.mount(small_image(root / "another"), "one").direct
            assert mounts.mounted(number)
        finally:
            other.kill()
            thread.join()
    assert not mounts.mounted(number)


def test_a_hundred_cycles_leave_nothing_behind(root: Path, device_files: DeviceFiles) -> None:
    images = [small_image(root / f"image-{number}") for number in range(2)]
    chosen = choose_mode("auto", root / "probe").mode
    loops = choose_mode("loop", root / "probe").mode
    for each in {chosen.name: chosen, loops.name: loops}.values():
        mounts = LayerMounts(root, each, device_files)
        before = mountinfo(root), loop_devices(), open_descriptors(), threading.active_count()
        for cycle in range(25):
            held = [mounts.mount(image, "one") for image in images]
            assert all(os.listdir(mounted.path) == ["file"] for mounted in held)
            if cycle % 3 == 0:
                hide(held[1].path)
            for mounted in held:
                mounts.unmount(mounted.number, "one")
        after = mountinfo(root), loop_devices(), open_descriptors(), threading.active_count()
        assert after == before
        assert not list((root / "layers").iterdir())
        assert not list((root / "run" / "layers").iterdir())
        assert mounts.devices() == []


def mountinfo(root: Path) -> list[str]:
    """Mounts without their numbers: those below ``root``, and what only this project mounts."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    ours = [line for line in lines if str(root) in line or " - erofs " in line]
    return sorted(line.split(" ", 3)[3] for line in ours)
