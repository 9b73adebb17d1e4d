"""Every error of the trees has a number for the kernel."""

import errno

import pytest

from headstart.content.erofs.reader import ImageDamaged
from mount.device.errors import DeviceError, NoSuchDevice, ReadFailed
from mount.device.operations import error_number
from mount.device.table import TableDamaged
from mount.tree.errors import NoSuchTree, TreeError, TreeUnusable
from mount.tree.operations import TREE_ERROR_NUMBERS


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (NoSuchTree("x"), errno.ENOENT),
        (TreeUnusable("x"), errno.EIO),
        (ImageDamaged("x"), errno.EIO),
        (NoSuchDevice("x"), errno.ENOENT),
        (ReadFailed("x"), errno.EIO),
        (TableDamaged("x"), errno.EIO),
        (OSError(5, "x"), errno.EIO),
        (ValueError("ours"), errno.EIO),
    ],
)
def test_an_error_has_its_number(error: Exception, number: int) -> None:
    assert error_number(error, TREE_ERROR_NUMBERS) == number


def test_every_error_is_in_the_table() -> None:
    for kind in (*TreeError.__subclasses__(), *DeviceError.__subclasses__(), ImageDamaged):
        assert kind in TREE_ERROR_NUMBERS
