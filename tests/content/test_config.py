"""The image configuration: which diff IDs and chain IDs an image has."""

import hashlib
import json

import pytest

from headstart.content.config import chain_ids, read_diff_ids
from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput

ONE, TWO, THREE = (Digest.of(name) for name in (b"one", b"two", b"three"))


def test_diff_ids_are_read_in_the_order_of_the_layers() -> None:
    body = json.dumps({"rootfs": {"type": "layers", "diff_ids": [str(ONE), str(TWO)]}})
    assert read_diff_ids(body.encode()) == (ONE, TWO)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"rootfs": []}',
        b'{"rootfs": {"diff_ids": {}}}',
        b'{"rootfs": {"diff_ids": [1]}}',
        b'{"rootfs": {"diff_ids": ["sha256:short"]}}',
        b'{"a":' * 100_000,
    ],
)
def test_what_is_no_configuration_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_diff_ids(body)


def test_the_first_chain_id_is_the_diff_id_and_each_next_one_names_all_below() -> None:
    second = hashlib.sha256(f"{ONE} {TWO}".encode()).hexdigest()
    third = hashlib.sha256(f"sha256:{second} {THREE}".encode()).hexdigest()
    assert [str(chain) for chain in chain_ids((ONE, TWO, THREE))] == [
        str(ONE),
        f"sha256:{second}",
        f"sha256:{third}",
    ]
    assert chain_ids(()) == ()
