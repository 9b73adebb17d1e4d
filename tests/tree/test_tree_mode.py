"""The suite of all modes in mode ``tree``, on one stripe and on several."""

from collections.abc import Iterator

import pytest

from mount.mounting.overlay import mount_overlay
from tests.mounting.filesystem_suite import FilesystemSuite, MountedTree, lower_tree, sample_tree
from tests.tree.stage import tree_stage


@pytest.fixture(scope="module", params=[1, 3], ids=["one stripe", "3 stripes"])
def mounted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedTree]:
    """The suite's tree; nothing of its contents is here before it is read."""
    directory = tmp_path_factory.mktemp("tree")
    with tree_stage(directory) as stage:
        above = stage.mount(stage.store("above", sample_tree(), request.param))
        below = stage.mount(stage.store("below", lower_tree(), request.param))
        overlay = directory / "overlay"
        overlay.mkdir()
        mount_overlay(above.parent, [above, below], overlay, 0)
        yield MountedTree(above, overlay)


class TestMounted(FilesystemSuite):
    """The suite."""
