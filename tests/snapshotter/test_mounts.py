"""The mounts that make a snapshot."""

from pathlib import Path

import pytest

from mount.snapshotter.errors import InvalidRequest
from mount.snapshotter.mounts import MOST_LAYERS, mounts_of
from mount.snapshotter.snapshot import Kind, Mount

UPPER, WORK = Path("/r/snapshots/9/fs"), Path("/r/snapshots/9/work")
TOP, BASE = Path("/r/layers/2"), Path("/r/snapshots/1/fs")


def test_a_snapshot_without_parents_is_its_own_directory() -> None:
    bind = Mount("bind", str(UPPER), ("rw", "rbind"))
    assert mounts_of(Kind.ACTIVE, UPPER, WORK, []) == (bind,)
    assert mounts_of(Kind.VIEW, UPPER, WORK, []) == (Mount("bind", str(UPPER), ("ro", "rbind")),)


def test_a_view_of_one_parent_is_that_parent() -> None:
    assert mounts_of(Kind.VIEW, UPPER, WORK, [TOP]) == (Mount("bind", str(TOP), ("ro", "rbind")),)


def test_a_view_of_several_parents_is_an_overlay_without_an_upper_directory() -> None:
    options = ("index=off", f"lowerdir={TOP}:{BASE}")
    assert mounts_of(Kind.VIEW, UPPER, WORK, [TOP, BASE]) == (Mount("overlay", "overlay", options),)


def test_an_active_snapshot_writes_to_its_own_directory_above_its_parents() -> None:
    options = ("index=off", f"workdir={WORK}", f"upperdir={UPPER}", f"lowerdir={TOP}:{BASE}")
    assert mounts_of(Kind.ACTIVE, UPPER, WORK, [TOP, BASE]) == (
        Mount("overlay", "overlay", options),
    )


def test_a_layer_that_comes_twice_is_named_once_at_its_upper_place() -> None:
    (mount,) = mounts_of(Kind.ACTIVE, UPPER, WORK, [TOP, BASE, TOP])
    assert mount.options[-1] == f"lowerdir={TOP}:{BASE}"
    assert mounts_of(Kind.VIEW, UPPER, WORK, [TOP, TOP]) == mounts_of(Kind.VIEW, UPPER, WORK, [TOP])


def test_more_layers_than_the_kernel_takes_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="501 layers; overlayfs takes 500"):
        mounts_of(
            Kind.ACTIVE, UPPER, WORK, [BASE / str(number) for number in range(MOST_LAYERS + 1)]
        )
