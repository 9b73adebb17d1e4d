"""What a read of a device file answers, without a mount, over the real client of ``fill.sock``."""

import errno
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.store.cached_layer import CachedLayer
from headstart.store.errors import FillFailed
from headstart.store.fill_client import FillClient
from headstart.store.geometry import UNIT_SIZE
from mount.device import operations
from mount.device.device_files import DeviceFiles
from mount.device.errors import DeviceError, NoSuchDevice, ReadFailed
from mount.device.naming import inode_of
from mount.device.open_layers import OpenLayers
from mount.device.table import DeviceTable, TableDamaged
from mount.device.waiting_reads import WaitingReads
from tests.device.layer_filler import LayerFiller, bring, hold
from tests.device.layers import StoredLayer, known_layer, stored_layer

STRIPES = 3
SIZE = 7 * UNIT_SIZE + 5 * 4096
PAGE = 4096


@pytest.fixture
def filler(tmp_path: Path) -> Iterator[LayerFiller]:
    with LayerFiller(tmp_path / "fill.sock") as running:
        yield running


@pytest.fixture
def stored(tmp_path: Path, filler: LayerFiller) -> Iterator[StoredLayer]:
    with stored_layer(tmp_path / "layer", SIZE, stripes=STRIPES) as layer:
        filler.add(layer)
        yield layer


@pytest.fixture
def table(tmp_path: Path, stored: StoredLayer) -> DeviceTable:
    table = DeviceTable(tmp_path)
    assert table.add(stored.layer, SIZE, UNIT_SIZE, STRIPES) == 1
    return table


@asynccontextmanager
async def device_files(
    filler: LayerFiller, table: DeviceTable, deadline: float = 20.0
) -> AsyncIterator[DeviceFiles]:
    async with FillClient(filler.path, "mount") as client:
        yield DeviceFiles(table, OpenLayers(client), WaitingReads(), deadline)


def test_every_read_answers_exactly_its_bytes(
    filler: LayerFiller, table: DeviceTable, stored: StoredLayer
) -> None:
    contents = [stored.stripe_content(stripe) for stripe in range(STRIPES)]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, STRIPES - 1), st.integers(0, SIZE), st.integers(0, 3 * UNIT_SIZE))
    def check(stripe: int, offset: int, length: int) -> None:
        async def read() -> bytes:
            async with device_files(filler, table) as files:
                return await files.read(inode_of(1, stripe), offset, length)

        assert trio.run(read) == contents[stripe][offset : offset + length]

    check()


def test_the_directory_lists_a_file_for_every_stripe(
    filler: LayerFiller, table: DeviceTable
) -> None:
    table.add(known_layer("other"), 0, UNIT_SIZE, 1)

    async def run() -> None:
        async with device_files(filler, table) as files:
            listed = list(files.listed())
            assert [name for name, _, _ in listed] == [b"1.0", b"1.1", b"1.2", b"2.0"]
            assert [size for _, _, size in listed] == [
                3 * UNIT_SIZE,
                2 * UNIT_SIZE + 5 * PAGE,
                2 * UNIT_SIZE,
                0,
            ]
            for name, inode, size in listed:
                assert files.find(name) == (inode, size)
                assert files.size(inode) == size
            assert files.find(b"0.0") == (2, 0)
            assert files.size(2) == 0

    trio.run(run)


@pytest.mark.parametrize("name", [b"1.3", b"2.0", b"01.0", b"1", b"", b"..", b"1.0.0", b"-1.0"])
def test_any_other_name_is_no_file(filler: LayerFiller, table: DeviceTable, name: bytes) -> None:
    async def run() -> None:
        async with device_files(filler, table) as files:
            with pytest.raises(NoSuchDevice):
                files.find(name)

    trio.run(run)


def test_what_is_here_is_read_without_the_filler(
    filler: LayerFiller, table: DeviceTable, stored: StoredLayer
) -> None:
    stored.complete()

    async def run() -> None:
        async with device_files(filler, table) as files:
            content = await files.read(inode_of(1, 1), 0, 2 * UNIT_SIZE)
            assert content == stored.stripe_content(1)[: 2 * UNIT_SIZE]

    trio.run(run)
    assert not filler.requests("want")


def test_a_read_wants_the_bytes_of_the_data_device_that_it_needs(
    filler: LayerFiller, table: DeviceTable
) -> None:
    async def run() -> None:
        async with device_files(filler, table) as files:
            await files.read(inode_of(1, 2), UNIT_SIZE - PAGE, 2 * PAGE)

    trio.run(run)
    wants = [(want["offset"], want["length"]) for want in filler.requests("want")]
    assert wants == [(3 * UNIT_SIZE - PAGE, PAGE), (5 * UNIT_SIZE, PAGE)]
    assert {want["priority"] for want in filler.requests("want")} == {"mount"}


@pytest.mark.parametrize("code", ["digest", "refused", "denied", "missing"])
def test_a_final_failure_is_an_error_and_a_retry_may_succeed(
    filler: LayerFiller,
    table: DeviceTable,
    stored: StoredLayer,
    caplog: pytest.LogCaptureFixture,
    code: str,
) -> None:
    filler.on_want = lambda _, __: FillFailed(code, "the chunk is not what its TOC says")

    async def run() -> None:
        async with device_files(filler, table) as files:
            for _ in range(3):
                with pytest.raises(ReadFailed):
                    await files.read(inode_of(1, 0), 0, PAGE)
            filler.on_want = bring
            assert await files.read(inode_of(1, 0), 0, PAGE) == stored.content[:PAGE]

    trio.run(run)
    told = [record for record in caplog.records if record.name == "mount.device.device_files"]
    assert len(told) == 1, "once a layer and reason"
    assert str(stored.layer.digest) in told[0].getMessage()
    assert "the chunk is not what its TOC says" in told[0].getMessage()


@pytest.mark.parametrize("code", ["upstream", "deadline", "space", "protocol"])
def test_a_passing_failure_only_delays(
    filler: LayerFiller, table: DeviceTable, stored: StoredLayer, code: str
) -> None:
    def fail_once(layer: StoredLayer, want: dict[str, object]) -> FillFailed | bool:
        if len(filler.requests("want")) == 1:
            return FillFailed(code, "the upstream is away")
        return bring(layer, want)

    filler.on_want = fail_once

    async def run() -> None:
        async with device_files(filler, table) as files:
            assert await files.read(inode_of(1, 0), 0, PAGE) == stored.content[:PAGE]

    trio.run(run)
    assert len(filler.requests("want")) == 2


def test_a_layer_that_is_refused_answers_nothing_even_where_bytes_are_here(
    filler: LayerFiller, table: DeviceTable, stored: StoredLayer
) -> None:
    stored.complete()
    filler.refusal = FillFailed("refused", "its diff ID differs")

    async def run() -> None:
        async with device_files(filler, table) as files:
            with pytest.raises(ReadFailed, match="diff ID"):
                await files.read(inode_of(1, 0), 0, PAGE)
            filler.refusal = None
            assert await files.read(inode_of(1, 0), 0, PAGE) == stored.content[:PAGE]

    trio.run(run)


def test_a_read_ends_at_its_deadline(
    filler: LayerFiller, table: DeviceTable, caplog: pytest.LogCaptureFixture
) -> None:
    filler.on_want = hold

    async def run() -> None:
        async with device_files(filler, table, deadline=0.2) as files:
            with pytest.raises(ReadFailed, match=r"mount\.read_deadline"):
                await files.read(inode_of(1, 0), 0, PAGE)

    trio.run(run)
    assert filler.requests("want")[0]["deadline_ms"] == 200
    assert "mount.read_deadline (0.2 s)" in caplog.text


def test_no_filler_at_all_ends_at_the_deadline_too(
    tmp_path: Path, table: DeviceTable, filler: LayerFiller
) -> None:
    filler.stop()

    async def run() -> None:
        async with device_files(filler, table, deadline=0.2) as files:
            with pytest.raises(ReadFailed, match=r"mount\.read_deadline"):
                await files.read(inode_of(1, 0), 0, PAGE)

    trio.run(run)


def test_a_stalled_layer_does_not_hold_another(
    tmp_path: Path, filler: LayerFiller, table: DeviceTable, stored: StoredLayer
) -> None:
    with stored_layer(tmp_path / "other", UNIT_SIZE) as other:
        other.complete()
        filler.add(other)
        number = table.add(other.layer, UNIT_SIZE, UNIT_SIZE, 1)
        filler.on_want = hold
        answers: list[bytes] = []

        async def run() -> None:
            async with device_files(filler, table) as files, trio.open_nursery() as nursery:

                async def stalled(page: int) -> None:
                    answers.append(await files.read(inode_of(1, 0), page * PAGE, PAGE))

                for page in range(64):
                    nursery.start_soon(stalled, page)
                await trio.to_thread.run_sync(filler.until_held, 64)
                content = await files.read(inode_of(number, 0), 0, UNIT_SIZE)
                assert content == other.content
                assert not answers
                filler.release()

        trio.run(run)
    assert sorted(answers) == sorted(
        stored.content[page * PAGE : (page + 1) * PAGE] for page in range(64)
    )


def test_f43_a_read_goes_on_after_the_filler_has_come_back(
    filler: LayerFiller, table: DeviceTable, stored: StoredLayer
) -> None:
    filler.on_want = hold
    answers: list[bytes] = []

    async def run() -> None:
        async with device_files(filler, table) as files, trio.open_nursery() as nursery:

            async def read() -> None:
                answers.append(await files.read(inode_of(1, 0), 0, PAGE))

            nursery.start_soon(read)
            await trio.to_thread.run_sync(filler.until_held, 1)
            await trio.to_thread.run_sync(filler.stop)
            filler.on_want = bring
            filler.start()

    trio.run(run)
    assert answers == [stored.content[:PAGE]]
    assert len(filler.requests("open")) == 2


def test_an_evicted_layer_is_read_on_and_opened_again_when_bytes_are_missing(
    filler: LayerFiller, table: DeviceTable, stored: StoredLayer
) -> None:
    async def run() -> None:
        async with device_files(filler, table) as files:
            await files.read(inode_of(1, 0), 0, PAGE)
            filler.evict()
            assert await files.read(inode_of(1, 0), 0, PAGE) == stored.content[:PAGE]
            assert len(filler.requests("open")) == 1
            content = await files.read(inode_of(1, 0), UNIT_SIZE, PAGE)
            assert content == stored.stripe_content(0)[UNIT_SIZE : UNIT_SIZE + PAGE]

    trio.run(run)
    # Whether the news has come before the second read or behind it, it is opened again once.
    assert len(filler.requests("open")) in (1, 2)


def test_f54_a_layer_image_that_was_made_anew_and_differs_is_not_read(
    tmp_path: Path, filler: LayerFiller, table: DeviceTable, stored: StoredLayer
) -> None:
    """The mounted metadata points into the old one: bytes of the new one would be wrong."""
    other = StoredLayer(tmp_path / "again/layer", SIZE, stripes=STRIPES, meta=b"other metadata")
    smaller = StoredLayer(tmp_path / "smaller/layer", SIZE - PAGE, stripes=STRIPES)

    async def run() -> None:
        async with device_files(filler, table) as files:
            await files.read(inode_of(1, 0), 0, PAGE)
            for changed in (other, smaller):
                filler.add(changed)
                await trio.to_thread.run_sync(filler.stop)
                filler.start()
                with pytest.raises(ReadFailed, match="made anew"):
                    await files.read(inode_of(1, 0), UNIT_SIZE, PAGE)
            filler.add(stored)
            await trio.to_thread.run_sync(filler.stop)
            filler.start()
            content = b""
            while not content:  # the news has to come first
                with suppress(ReadFailed):
                    content = await files.read(inode_of(1, 0), UNIT_SIZE, PAGE)
                await trio.sleep(0.01)
            assert content == stored.stripe_content(0)[UNIT_SIZE : UNIT_SIZE + PAGE]

    try:
        trio.run(run)
    finally:
        other.close()
        smaller.close()


def test_f54_a_read_that_the_store_answers_short_is_an_error(
    filler: LayerFiller, table: DeviceTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would fill what is missing with zeros."""
    monkeypatch.setattr(CachedLayer, "read", lambda _, __, length: bytes(length - 1))

    async def run() -> None:
        async with device_files(filler, table) as files:
            with pytest.raises(ReadFailed, match=f"{PAGE - 1} bytes were read where {PAGE} are"):
                await files.read(inode_of(1, 0), 0, PAGE)

    trio.run(run)


def test_what_is_read_at_once_is_what_a_read_answers(
    filler: LayerFiller, table: DeviceTable, stored: StoredLayer
) -> None:
    stored.complete()
    found: list[bool] = []

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, STRIPES - 1), st.integers(0, SIZE), st.integers(0, 3 * UNIT_SIZE))
    def check(stripe: int, offset: int, length: int) -> None:
        async def run() -> None:
            async with device_files(filler, table) as files:
                inode = inode_of(1, stripe)
                assert files.read_at_once(inode, offset, length) is None, "not open yet"
                content = await files.read(inode, offset, length)
                here = files.read_at_once(inode, offset, length)
                found.append(here is not None)
                assert here is None or here == content

        trio.run(run)

    check()
    assert any(found), "the page cache has what was just read"


def test_nothing_is_read_at_once_that_is_missing_or_of_another_layer_image(
    tmp_path: Path, filler: LayerFiller, table: DeviceTable, stored: StoredLayer
) -> None:
    other = StoredLayer(tmp_path / "again/layer", SIZE, stripes=STRIPES, meta=b"other metadata")
    other.complete()
    inode = inode_of(1, 0)

    async def run() -> None:
        async with device_files(filler, table) as files:
            await files.read(inode, 0, PAGE)
            assert bytes(files.read_at_once(inode, 0, PAGE) or b"") == stored.content[:PAGE]
            assert files.read_at_once(inode, UNIT_SIZE, PAGE) is None
            filler.add(other)
            await trio.to_thread.run_sync(filler.stop)
            filler.start()
            with pytest.raises(ReadFailed, match="made anew"):
                await files.read(inode, UNIT_SIZE, PAGE)
            assert files.read_at_once(inode, 0, PAGE) is None

    try:
        trio.run(run)
    finally:
        other.close()


def test_f54_a_file_that_was_truncated_is_never_answered_short(
    filler: LayerFiller, table: DeviceTable, stored: StoredLayer
) -> None:
    stored.complete()

    async def run() -> None:
        async with device_files(filler, table) as files:
            inode = inode_of(1, 0)
            await files.read(inode, 0, 2 * PAGE)
            os.truncate(stored.devices[0], PAGE)
            assert files.read_at_once(inode, 0, 2 * PAGE) is None
            with pytest.raises(ReadFailed):
                await files.read(inode, 0, 2 * PAGE)

    trio.run(run)


def test_a_removed_device_is_closed_and_gone(filler: LayerFiller, table: DeviceTable) -> None:
    async def run() -> None:
        async with device_files(filler, table) as files:
            await files.read(inode_of(1, 0), 0, PAGE)
            table.remove(1)
            files.forget_removed()
            with pytest.raises(NoSuchDevice):
                await files.read(inode_of(1, 0), 0, PAGE)
            await trio.to_thread.run_sync(filler.until, lambda: bool(filler.requests("close")))

    trio.run(run)


def test_reads_that_wait_long_are_told_once_a_minute(
    table: DeviceTable, caplog: pytest.LogCaptureFixture
) -> None:
    device = table.get(1)
    assert device is not None
    reads = WaitingReads()
    caplog.set_level(logging.WARNING)
    with reads.waiting(device, 123), reads.waiting(device, 456):
        now = time.monotonic()
        reads.tell(now + 9)
        assert not caplog.records
        reads.tell(now + 11)
        reads.tell(now + 30)
        assert len(caplog.records) == 1
        assert "reads that wait: 2" in caplog.text
        assert "offset 123" in caplog.text
        reads.tell(now + 80)
        assert len(caplog.records) == 2
    reads.tell(now + 300)
    assert len(caplog.records) == 2


def test_every_error_has_its_number() -> None:
    for kind in [*DeviceError.__subclasses__(), TableDamaged]:
        assert kind in operations.ERROR_NUMBERS
    assert operations.error_number(NoSuchDevice("")) == errno.ENOENT
    assert operations.error_number(ReadFailed("")) == errno.EIO
    assert operations.error_number(PermissionError(errno.EACCES, "")) == errno.EIO


def test_a_mistake_of_ours_is_an_io_error_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert operations.error_number(KeyError("mistake")) == errno.EIO
    assert caplog.records[0].exc_info is not None
