"""The account as the files and the index tell it at a start."""

from pathlib import Path

import pytest

from headstart.content.digest import Digest
from headstart.store.geometry import UNIT_SIZE
from headstart.store.index import Index
from headstart.store.layout import Layout
from proxy.fill.blob_files import BlobFiles
from proxy.fill.layers.layer_files import NO_ACCOUNT, LayerFiles
from proxy.fill.quota import Quota
from proxy.fill.records import BlobRecords
from tests.fill.writing import layout_in

DIGEST, NEW = Digest.of(b"stored"), Digest.of(b"new")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return layout_in(tmp_path)


def evicts(layout: Layout) -> bool:
    """Whether after a start with a new index anything is evicted before its holders have spoken."""
    gone: list[object] = []
    quota = Quota(1000, 800, gone.append, grace_seconds=3600)
    index = Index(layout.index)
    BlobRecords(index, layout).fill_account(quota)
    index.close()
    quota.account(NEW, 1000, 1.0, pinned=False)
    return quota.make_room(DIGEST, 1)


def test_a_cache_with_nothing_in_it_waits_for_no_holder(layout: Layout) -> None:
    assert evicts(layout)


def test_f34_with_a_lost_index_blobs_wait_for_their_holders(layout: Layout) -> None:
    BlobFiles.create(layout, DIGEST, UNIT_SIZE, UNIT_SIZE).close()
    assert not evicts(layout)


def test_f34_with_a_lost_index_layer_images_wait_for_their_holders(layout: Layout) -> None:
    LayerFiles.create(layout, DIGEST, UNIT_SIZE, UNIT_SIZE, NO_ACCOUNT).close()
    assert not evicts(layout)
