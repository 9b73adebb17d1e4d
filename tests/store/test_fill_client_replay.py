"""The client of fill.sock over broken connections: everything open and wanted is replayed."""

import asyncio
from pathlib import Path

import pytest

from headstart.store.errors import FillFailed
from headstart.store.fill_client import FillClient
from headstart.store.geometry import MIB
from headstart.store.wire import Message
from tests.store.client_scenarios import client_caught_up, opened, play, waiting
from tests.store.scripted_filler import SIZE, ScriptedFiller
from tests.store.stored_objects import open_descriptors


def test_handles_wants_and_calls_are_replayed_after_a_restart(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)
        call = asyncio.create_task(client.call({"type": "pin", "digest": "a", "pinned": True}))
        await filler.until("pin")
        async with waiting(filler, handle, 10, 1000) as (want, reader):
            await filler.restart()
            replayed = await filler.until("want", 2)
            first, second = filler.requests("open")
            changing = {"id", "handle"}
            assert {k: v for k, v in first.items() if k not in changing} == {
                k: v for k, v in second.items() if k not in changing
            }
            assert replayed["handle"] == second["handle"] != first["handle"]
            assert (replayed["offset"], replayed["length"]) == (10, 1000)
            filler.answer(await filler.until("pin", 2), {"type": "ok"})
            assert (await call)["type"] == "ok"
            await filler.until("follow", 2)
            filler.blob.bring(2000)
            filler.notify({"type": "arrived", "offset": 0, "length": 2000})
            assert await reader == 1000
            filler.answer(replayed, {"type": "done"})
            await handle.wait_done(want)

    play(tmp_path, scenario)


def test_bytes_that_came_while_the_connection_was_down_are_seen(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)
        async with waiting(filler, handle) as (_, reader):
            await filler.stop()
            filler.blob.bring(SIZE)
            await filler.start()
            assert await reader == SIZE

    play(tmp_path, scenario)


def test_an_opening_under_way_is_replayed(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        right = filler.answers.pop("open")
        opening = asyncio.create_task(opened(client))
        await filler.until("open")
        filler.answers["open"] = right
        await filler.restart()
        assert (await opening).blob.size == SIZE

    play(tmp_path, scenario)


def test_many_breaks_lose_nothing_and_hold_no_descriptors_in_the_end(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)
        async with waiting(filler, handle) as (_, reader):
            for broken in range(1, 6):
                filler.drop()
                await filler.until("want", broken + 1)
            filler.blob.bring(SIZE)
            filler.notify({"type": "arrived", "offset": 0, "length": SIZE})
            assert await reader == SIZE
        before = open_descriptors()
        client.close(handle)
        assert open_descriptors() < before
        # The numbers of dead connections are not remembered.
        await client_caught_up(filler, client)
        assert client._pending == {}

    play(tmp_path, scenario)


def test_a_blob_that_the_restarted_filler_refuses_fails_its_readers_old_and_new(
    tmp_path: Path,
) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)
        async with waiting(filler, handle) as (_, reader):
            filler.answers["open"] = lambda _: {"type": "failed", "code": "denied", "text": "no"}
            await filler.restart()
            with pytest.raises(FillFailed, match="no"):
                await reader
            async with handle.wanting(0, 10, "client", bulk=True) as want:
                with pytest.raises(FillFailed, match="no"):
                    await handle.wait(want, 0, 10)

    play(tmp_path, scenario)


def test_what_was_done_is_wanted_again_when_the_filler_no_longer_believes_it(
    tmp_path: Path,
) -> None:
    """A reader in mid-blob whose bytes turn out to be damaged waits for the refetch only."""

    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)
        async with waiting(filler, handle) as (want, reader):
            filler.blob.bring(SIZE)
            filler.answer(filler.requests("want")[0], {"type": "done"})
            assert await reader == SIZE
            await handle.wait_done(want)
            filler.blob.distrust()
            await filler.restart()
            again = asyncio.create_task(handle.wait(want, MIB, 10))
            await filler.until("want", 2)
            assert not again.done()
            filler.blob.trust()
            filler.notify({"type": "arrived", "offset": 0, "length": SIZE})
            assert await again == 10

    play(tmp_path, scenario)


def test_a_handle_closed_before_a_break_says_nothing_on_the_next_connection(
    tmp_path: Path,
) -> None:
    """Its number may be another blob's there: an ``unfollow`` would starve that one's readers."""

    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)
        async with handle.wanting(0, SIZE, "client", bulk=True):
            await filler.until("want")
            client.close(handle)
            await filler.until("close")
            filler.drop()
            await filler.until_connected(2)
            await client_caught_up(filler, client)
            filler.received.clear()
        client.touch(handle)
        await client_caught_up(filler, client)
        assert [message["type"] for message in filler.received] == ["figures"]

    play(tmp_path, scenario)


def test_a_closed_handle_is_not_opened_again(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)
        client.close(handle)
        client.close(handle)
        await filler.restart()
        await client_caught_up(filler, client)
        assert len(filler.requests("open")) == 1

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    ("garbage", "then_breaks"),
    [
        (b"\xff\xff\xff\xff", False),
        (b"\0\0\0\5hello", False),
        (b"\0\0\0\2[]", False),
        (b"\0\0\0\x09half a", True),
    ],
)
def test_a_filler_that_sends_garbage_is_left_and_asked_again(
    tmp_path: Path, garbage: bytes, then_breaks: bool
) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)
        async with waiting(filler, handle) as (_, reader):
            filler.send_raw(garbage)
            await asyncio.sleep(0.01)
            if then_breaks:
                filler.drop()
            await filler.until("want", 2)
            filler.blob.bring(SIZE)
            filler.notify({"type": "arrived", "offset": 0, "length": SIZE})
            assert await reader == SIZE

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "message",
    [
        {"type": "opened"},
        {"type": "opened", "handle": "x"},
        {"type": "opened", "handle": 7, "state": "streaming"},
        {"type": "opened", "handle": 7, "state": "streaming", "paths": 5, "map": []},
        {},
    ],
)
def test_an_answer_of_the_wrong_form_breaks_the_connection_not_the_client(
    tmp_path: Path, message: Message
) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        right = filler.answers["open"]
        filler.answers["open"] = lambda _: message
        opening = asyncio.create_task(opened(client))
        await filler.until("open")
        filler.answers["open"] = right
        assert (await opening).blob.size == SIZE
        assert filler.connections >= 2

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "message",
    [
        {"type": "arrived", "handle": 12345},
        {"type": "arrived"},
        {"type": "arrived", "handle": "x"},
        {"type": "done", "id": 987654},
        {"type": "state", "handle": 12345, "state": "refused"},
        {"type": "unheard-of", "handle": 1},
        {},
    ],
)
def test_a_notice_that_concerns_nobody_is_ignored(tmp_path: Path, message: Message) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)
        async with waiting(filler, handle) as (_, reader):
            filler.send(message)
            await client_caught_up(filler, client)
            assert not reader.done()
            assert not handle.stale
            assert filler.connections == 1

    play(tmp_path, scenario)
