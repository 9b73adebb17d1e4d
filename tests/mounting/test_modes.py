"""Layer images mounted from files and over loop devices, on one stripe and on several."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount.mounting import system_calls
from mount.mounting.errors import ModeUnavailable
from mount.mounting.loop_devices import attached
from mount.mounting.modes import FileMode, LayerFiles, LoopMode, Mode
from mount.mounting.mount_table import mounted_at
from mount.mounting.overlay import mount_overlay
from mount.mounting.probe import Choice, choose_mode, why_not
from tests.mounting.conftest import unmount_below, usable
from tests.mounting.filesystem_suite import (
    BIG,
    PLAIN,
    FilesystemSuite,
    MountedTree,
    lower_tree,
    sample_tree,
)
from tests.mounting.layer_images import make_image, small_image
from tests.mounting.machine import loop_devices, open_descriptors

VARIANTS = [("file", 1), ("file", 3), ("loop", 1)]


def files_of(directory: Path, stripes: int = 1) -> LayerFiles:
    image = make_image(directory, sample_tree(), stripes=stripes)
    return LayerFiles(image.meta, image.devices)


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda variant: "-".join(map(str, variant)))
def mounted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedTree]:
    """The suite's tree in every mode, on one stripe and on several."""
    name, stripes = request.param
    if os.geteuid() != 0:
        pytest.skip("mounts need root")
    directory = tmp_path_factory.mktemp("mounted")
    mode = usable(name, directory, stripes)
    layer, lower, overlay = (directory / each for each in ("layer", "lower", "overlay"))
    for path in (layer, lower, overlay):
        path.mkdir()
    try:
        mode.mount(files_of(directory / "image", stripes), layer)
        below = make_image(directory / "below", lower_tree(), stripes=stripes)
        mode.mount(LayerFiles(below.meta, below.devices), lower)
        mount_overlay(directory, [layer, lower], overlay, 0)
        yield MountedTree(layer, overlay)
    finally:
        unmount_below(directory)


class TestMounted(FilesystemSuite):
    """The suite."""


def test_a_layer_of_empty_files_needs_no_byte_of_its_device(mode: Mode, root: Path) -> None:
    image = small_image(root / "image", {"empty": b"", "other": b""})
    assert image.geometry.size == 0
    target = root / "target"
    target.mkdir()
    mode.mount(LayerFiles(image.meta, image.devices), target)
    assert sorted(os.listdir(target)) == ["empty", "other"]
    assert (target / "empty").read_bytes() == b""


def test_loop_devices_go_with_their_mount(root: Path, tmp_path: Path) -> None:
    mode = usable("loop", tmp_path)
    before = loop_devices()
    target = root / "target"
    target.mkdir()
    mode.mount(files_of(root / "image"), target)
    assert len(loop_devices()) == len(before) + 2
    assert mounted_at(target)[0].source in {f"/dev/{name}" for name in loop_devices() - before}
    system_calls.unmount(target)
    assert loop_devices() == before


def test_a_layer_on_several_stripes_is_not_mounted_over_loop_devices(root: Path) -> None:
    before = loop_devices()
    with pytest.raises(OSError, match=r"3 stripes; use one directory in cache\.stripes"):
        LoopMode().mount(files_of(root / "image", stripes=3), root)
    assert loop_devices() == before


def test_loop_devices_stay_while_an_overlay_uses_them(root: Path, tmp_path: Path) -> None:
    mode = usable("loop", tmp_path)
    before = loop_devices()
    target, overlay, empty = (root / name for name in ("target", "overlay", "empty"))
    for path in (target, overlay, empty):
        path.mkdir()
    mode.mount(files_of(root / "image"), target)
    mount_overlay(root, [target, empty], overlay, 0)
    system_calls.unmount(target)
    assert (overlay / "big").read_bytes() == BIG
    system_calls.unmount(overlay)
    assert loop_devices() == before


def test_loop_devices_are_read_only_and_read_through_the_page_cache(tmp_path: Path) -> None:
    usable("loop", tmp_path)
    file = tmp_path / "file"
    file.write_bytes(bytes(8192))
    with attached(file) as device:
        about = Path("/sys/block") / device.name
        assert (about / "ro").read_text() == "1\n"
        assert (about / "loop/dio").read_text() == "0\n"
        assert (about / "loop/autoclear").read_text() == "1\n"
        assert (about / "loop/backing_file").read_text() == f"{file}\n"
        assert (about / "size").read_text() == "16\n"
    assert device.name not in loop_devices()


def test_a_failed_mount_leaves_nothing_behind(mode: Mode, root: Path) -> None:
    before = loop_devices(), open_descriptors()
    meta = root / "meta"
    meta.write_bytes(bytes(4096))
    with pytest.raises(OSError, match=r"mount\(.*\): Invalid argument") as refused:
        mode.mount(LayerFiles(meta, (meta,)), root)
    assert refused.value.errno == errno.EINVAL
    assert str(root) in str(refused.value)
    with pytest.raises(FileNotFoundError, match="nothing"):
        mode.mount(LayerFiles(meta, (root / "nothing",)), root)
    assert (loop_devices(), open_descriptors()) == before


def test_the_mode_is_found_by_trying(tmp_path: Path) -> None:
    choice = choose_mode("auto", tmp_path / "run")
    assert choice.mode.name in ("file", "loop")
    assert why_not(choice.mode, tmp_path) is None
    assert list((tmp_path / "run").iterdir()) == []


class Broken:
    """A mode that does not do what it says."""

    def __init__(self, name: str, failure: OSError | None = None) -> None:
        self.name = name
        self.magic = system_calls.EROFS_MAGIC
        self.through_fuse = False
        self._failure = failure

    def mount(self, files: LayerFiles, target: Path) -> None:
        if self._failure is not None:
            raise self._failure
        with files.devices[-1].open("r+b") as device:
            device.write(b"X")
        FileMode().mount(files, target)


def test_a_mode_that_reads_wrong_bytes_is_not_taken(tmp_path: Path) -> None:
    usable("file", tmp_path)
    for stripes in (1, 2, 5):
        assert why_not(FileMode(), tmp_path, [tmp_path] * stripes) is None
        reason = why_not(Broken("file"), tmp_path, [tmp_path] * stripes)
        assert reason is not None and "reads as other bytes" in reason
    assert not list(tmp_path.iterdir())


def test_a_cache_on_several_stripes_is_tried_as_such(tmp_path: Path) -> None:
    usable("loop", tmp_path)
    stripes = [tmp_path / "one", tmp_path / "other"]
    for stripe in stripes:
        stripe.mkdir()
    assert choose_mode("loop", tmp_path / "run", stripes[:1]).mode.name == "loop"
    with pytest.raises(ModeUnavailable, match="2 stripes"):
        choose_mode("loop", tmp_path / "run", stripes)
    assert not [path for stripe in stripes for path in stripe.iterdir()]


def test_a_store_in_memory_is_mounted_over_loop_devices(root: Path, tmp_path: Path) -> None:
    usable("loop", tmp_path)
    memory = root / "memory"
    memory.mkdir()
    system_calls.mount("none", memory, "tmpfs", 0, "")
    choice = choose_mode("auto", tmp_path / "run", [memory])
    if choice.mode.name == "loop":
        assert choice.refused[0][0] == "file" and str(memory) in choice.refused[0][1]
    else:
        assert why_not(choice.mode, tmp_path, [memory]) is None


def test_the_next_mode_is_taken_where_the_better_ones_do_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable("loop", tmp_path)
    broken = Broken("file", OSError(errno.ENOTBLK, "mount(x): Block device required"))
    monkeypatch.setattr("mount.mounting.probe.FileMode", lambda: broken)
    choice = choose_mode("auto", tmp_path / "run")
    assert choice.mode.name == "loop"
    assert choice.refused == (("file", "mount(x): Block device required"),)
    assert "loop devices" in str(choice) and "Block device required" in str(choice)
    with pytest.raises(ModeUnavailable, match=r"mount\.mode: file .*Block device required"):
        choose_mode("file", tmp_path / "run")


def test_the_tree_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FileMode", "LoopMode"):
        broken = Broken(name.removesuffix("Mode").lower(), OSError(errno.ENODEV, "not here"))
        monkeypatch.setattr(f"mount.mounting.probe.{name}", lambda broken=broken: broken)
    with pytest.raises(ModeUnavailable, match=r"file: not here; loop: not here; tree: "):
        choose_mode("auto", tmp_path)
    usable("file", tmp_path)
    tree = FileMode()
    choice = choose_mode("auto", tmp_path, tree=tree)
    assert choice == Choice(tree, (("file", "not here"), ("loop", "not here")))


def test_more_layers_than_their_full_paths_have_room_for(root: Path, mode: Mode) -> None:
    layers = root / ("layers-" + "x" * 40)
    image = small_image(root / "image", {"file": b"bottom"})
    names = [layers / str(number) for number in range(1, 128)]
    for name in names:
        name.mkdir(parents=True)
    mode.mount(LayerFiles(image.meta, image.devices), names[-1])
    assert len(":".join(map(str, names))) > system_calls.MOST_MOUNT_DATA
    target, here = root / "target", Path.cwd()
    target.mkdir()
    mount_overlay(layers, names, target, 0)
    assert (target / "file").read_bytes() == b"bottom"
    assert Path.cwd() == here


def test_changes_go_to_the_upper_directory(root: Path, mode: Mode) -> None:
    layer, target, upper, work = (root / name for name in ("layer", "target", "up:per", "work"))
    for path in (layer, target, upper, work):
        path.mkdir()
    mode.mount(files_of(root / "image"), layer)
    mount_overlay(root, [layer], target, 0, upper=upper, work=work)
    (target / "plain").write_bytes(b"changed")
    (target / "new").write_bytes(b"new")
    assert (upper / "plain").read_bytes() == b"changed"
    assert (layer / "plain").read_bytes() == PLAIN
