"""Trees through the real kernel: what it keeps, what waits, what survives, what is refused."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from headstart.content.erofs import DeviceGeometry, build
from headstart.store.errors import FillFailed
from mount.mounting import probe_image, system_calls
from mount.mounting.errors import FilesMissing, ModeUnavailable, MountRefused
from mount.mounting.layer_mounts import LAYERS
from mount.mounting.modes import LAYER_FLAGS, TreeMode
from mount.mounting.mount_table import mounted_at
from mount.mounting.overlay import mount_overlay
from mount.mounting.probe import Choice, choose_mode, why_not
from mount.supervisor import control
from tests.device.layer_filler import bring, hold, wait_until
from tests.mounting.layer_images import Tree
from tests.tree.stage import USER, TreeStage, image_of, tree_stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[TreeStage]:
    with tree_stage(tmp_path) as running:
        yield running


def small_tree(**files: bytes) -> Tree:
    tree = Tree()
    tree.directory("sub")
    tree.file("sub/file", b"content " * 1000)
    for name, content in files.items():
        tree.file(name, content)
    return tree


def test_names_and_attributes_need_no_filler(stage: TreeStage) -> None:
    path = stage.mount(stage.store("layer", small_tree()))
    stage.filler.stop()
    assert os.listdir(path) == ["sub"]
    assert (path / "sub/file").stat().st_size == 8000
    stage.filler.start()
    assert (path / "sub/file").read_bytes() == b"content " * 1000
    assert not mounted_at(path)[0].kind.startswith("erofs")


def test_the_kernel_keeps_names_that_are_there_and_names_that_are_not(stage: TreeStage) -> None:
    path = stage.mount(stage.store("layer", small_tree(plain=b"kept")))
    with pytest.raises(FileNotFoundError):
        (path / "sub/missing").stat()
    before = (path / "sub/file").stat(), (path / "plain").read_bytes()
    descriptor = os.open(path / "plain", os.O_RDONLY)
    daemon = stage.devices.status("daemon")
    try:
        # It answers nothing now; the watchdog is slower than this.
        os.kill(daemon, signal.SIGSTOP)
        with pytest.raises(FileNotFoundError):
            (path / "sub/missing").stat()
        assert (path / "sub/file").stat() == before[0]
        assert os.pread(descriptor, 100, 0) == before[1]
    finally:
        os.kill(daemon, signal.SIGCONT)
        os.close(descriptor)


def test_an_open_file_and_a_directory_are_read_on_by_the_next_daemon(stage: TreeStage) -> None:
    tree = small_tree()
    tree.directory("many")
    for number in range(2000):
        tree.file(f"many/{number:05}")
    path = stage.mount(stage.store("layer", tree))
    with os.scandir(path / "many") as entries, (path / "sub/file").open("rb") as file:
        names = [next(entries).name for _ in range(5)]
        stage.devices.kill_daemon()
        names += [entry.name for entry in entries]
        assert file.read() == b"content " * 1000
    assert sorted(names) == [f"{number:05}" for number in range(2000)]
    assert (path / "sub/file").read_bytes() == b"content " * 1000


def test_f44_a_read_that_waits_ends_right_although_its_daemon_dies(stage: TreeStage) -> None:
    path = stage.mount(stage.store("layer", small_tree()))
    stage.filler.on_want = hold
    with subprocess.Popen(["cat", path / "sub/file"], stdout=subprocess.PIPE) as reader:
        stage.filler.until_held(1)
        stage.filler.on_want = bring
        stage.devices.kill_daemon()
        assert reader.communicate(timeout=60)[0] == b"content " * 1000
    assert reader.returncode == 0


def test_an_error_is_eio_and_a_retry_succeeds(stage: TreeStage) -> None:
    path = stage.mount(stage.store("layer", small_tree()))
    stage.filler.on_want = lambda _, __: FillFailed("digest", "a chunk is damaged")
    with pytest.raises(OSError, match="Input/output"):
        (path / "sub/file").read_bytes()
    stage.filler.on_want = bring
    assert (path / "sub/file").read_bytes() == b"content " * 1000


def test_a_whole_layer_stays_where_it_is_mounted(stage: TreeStage) -> None:
    stored = stage.store("layer", small_tree())
    mounts = stage.mounts()
    lazy = mounts.mount(image_of(stored), USER)
    assert not lazy.direct and mounts.through_fuse(lazy.number)
    stored.complete()
    whole = mounts.mount(image_of(stored, verified=True), USER)
    assert whole.direct and whole.path == lazy.path and not mounts.through_fuse(whole.number)
    assert len(mounted_at(whole.path)) == 1
    assert (whole.path / "sub/file").read_bytes() == b"content " * 1000


def test_what_has_vanished_is_mounted_again_also_on_a_new_connection(stage: TreeStage) -> None:
    stored = stage.store("layer", small_tree())
    mounts = stage.mounts()
    number = mounts.mount(image_of(stored), USER).number
    system_calls.unmount(mounts.path(number))
    assert not mounts.mounted(number)
    assert mounts.restore(number).path == mounts.path(number)
    control.stop(stage.devices.root, force=True)
    assert not mounts.mounted(number)
    path = mounts.restore(number).path
    assert (path / "sub/file").read_bytes() == b"content " * 1000
    assert len(mounted_at(path)) == 1


def test_the_flags_are_those_of_every_layer(stage: TreeStage) -> None:
    path = stage.mount(stage.store("layer", small_tree()))
    assert {"ro", "nosuid", "nodev"} <= set(mounted_at(path)[0].options)
    assert LAYER_FLAGS == system_calls.MS_RDONLY | system_calls.MS_NOSUID | system_calls.MS_NODEV


def test_nothing_ends_while_a_layer_is_mounted_or_an_overlay_has_it(
    stage: TreeStage, tmp_path: Path
) -> None:
    stored = stage.store("layer", small_tree())
    mounts = stage.mounts()
    number = mounts.mount(image_of(stored), USER).number
    with pytest.raises(control.DevicesInUse, match="layers are mounted"):
        control.stop(stage.devices.root)
    empty, overlay = mounts.path(number).parent / "empty", tmp_path / "overlay"
    empty.mkdir()
    overlay.mkdir()
    mount_overlay(empty.parent, [mounts.path(number), empty], overlay, 0)
    assert mounts.unmount(number, USER)
    with pytest.raises(control.DevicesInUse, match="overlay"):
        control.stop(stage.devices.root)
    assert (overlay / "sub/file").stat().st_size == 8000
    # Another one begins beside it.
    again = mounts.mount(image_of(stored), USER)
    assert (again.path / "sub/file").read_bytes() == b"content " * 1000
    assert mounts.unmount(again.number, USER)
    system_calls.unmount(overlay)
    # A process of somebody else that has begun meanwhile with copies of all mounts delays it.
    with contextlib.suppress(control.DevicesInUse):
        control.stop(stage.devices.root)
    wait_until(lambda: not stage.devices.processes())


def test_a_layer_without_metadata_has_to_be_asked_for(stage: TreeStage) -> None:
    stored = stage.store("layer", small_tree())
    mounts = stage.mounts()
    number = mounts.enter(image_of(stored), USER)
    with pytest.raises(FilesMissing):
        mounts.restore(number)
    moved = stored.meta.rename(stored.meta.with_name("elsewhere"))
    with pytest.raises(MountRefused, match="No such file"):
        mounts.mount(image_of(stored), USER)
    moved.rename(stored.meta)
    assert mounts.restore(number).number == number


def test_damaged_metadata_is_refused(stage: TreeStage) -> None:
    stored = stage.store("layer", small_tree())
    content = bytearray(stored.meta.read_bytes())
    content[1100] ^= 1
    stored.meta.write_bytes(content)
    with pytest.raises(MountRefused, match="Input/output"):
        stage.mount(stored)
    assert "checksum" in stage.devices.log()
    assert stage.devices.status("restarts") == 0


def test_other_metadata_is_never_read_as_that_which_was_mounted(stage: TreeStage) -> None:
    """A layer image that was made anew and differs, met by a new daemon."""
    stored = stage.store("layer", small_tree())
    path = stage.mount(stored)
    assert (path / "sub/file").stat().st_size == 8000
    other = small_tree()
    other.root.children[b"sub"].children[b"another"] = other.root.children[b"sub"].children.pop(
        b"file"
    )
    geometry = stored.geometry
    meta = build(other.root, DeviceGeometry(geometry.size, geometry.extent_size, 1))
    fresh = stored.meta.with_name("fresh")
    fresh.write_bytes(meta)
    fresh.rename(stored.meta)
    stage.devices.kill_daemon()
    with pytest.raises(OSError, match="Input/output"):
        (path / "sub/file").read_bytes()
    with pytest.raises(OSError, match="Input/output"):
        os.listdir(path)


def test_trees_are_listed_beside_the_device_files(stage: TreeStage) -> None:
    number = stage.mounts().mount(image_of(stage.store("layer", small_tree())), USER).number
    shown = stage.devices.places.device_files
    assert sorted(os.listdir(shown)) == [f"{number}.0", "trees"]
    assert os.listdir(shown / "trees") == [str(number)]
    for missing in ("trees/99", "trees/x", "trees/01", f"trees/{1 << 24}", "trees/-1"):
        with pytest.raises(FileNotFoundError):
            (shown / missing).stat()
    with pytest.raises(OSError, match="No data"):
        os.getxattr(shown / f"{number}.0", "user.any")
    assert os.listxattr(shown / "trees") == []
    assert (shown / "trees/.." / f"trees/{number}" / "sub").is_dir()


def test_the_mode_is_tried_with_a_tree_of_its_own(stage: TreeStage, tmp_path: Path) -> None:
    assert why_not(stage.mode, tmp_path) is None
    assert choose_mode("tree", tmp_path / "run", tree=stage.mode) == Choice(stage.mode)
    probe = stage.devices.places.device_files / "trees/0" / probe_image.NAME
    assert probe.read_bytes() == probe_image.CONTENT
    assert not list((tmp_path / "run").iterdir())

    def broken() -> Path:
        raise MountRefused("no supervisor can be started")

    with pytest.raises(ModeUnavailable, match=r"tree: no supervisor can be started"):
        choose_mode("tree", tmp_path / "run", tree=TreeMode(tmp_path, broken))


def test_a_removed_layer_is_shown_no_more(stage: TreeStage) -> None:
    mounts = stage.mounts()
    stored = stage.store("layer", small_tree())
    number = mounts.mount(image_of(stored), USER).number
    assert mounts.unmount(number, USER)
    assert not (stage.devices.root / LAYERS / str(number)).exists()
    other = replace(image_of(stored), layer=stored.layer)
    assert mounts.mount(other, USER).number == number + 1


def test_a_mapped_program_runs_from_an_overlay(stage: TreeStage, tmp_path: Path) -> None:
    tree = Tree()
    tree.file("python", Path(sys.executable).resolve().read_bytes(), 0o755)
    path = stage.mount(stage.store("layer", tree))
    empty, overlay = path.parent / "empty", tmp_path / "overlay"
    empty.mkdir()
    overlay.mkdir()
    mount_overlay(path.parent, [path, empty], overlay, 0)
    # By a shell: this process may hold its interpreter's lock until the program has been loaded,
    # and its own thread answers for the bytes of it.
    said = subprocess.run(
        ["sh", "-c", 'exec "$0" "$@"', overlay / "python", "-I", "-S", "-c", "print(6 * 7)"],
        env={"PYTHONHOME": sys.base_prefix},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "42\n"
