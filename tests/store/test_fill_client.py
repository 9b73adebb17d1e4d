"""The client of fill.sock: what it asks, what it tells readers, and no wait for ever."""

import asyncio
import time
from pathlib import Path

import pytest

from headstart.store.errors import FillerUnreachable, FillFailed
from headstart.store.fill_client import FillClient
from headstart.store.geometry import MIB
from headstart.store.wire import PRIORITIES, PROTOCOL_VERSION, Message
from tests.store.client_scenarios import client_caught_up, opened, play, waiting
from tests.store.scripted_filler import DIGEST, SIZE, ScriptedFiller
from tests.store.stored_objects import pattern

# --- opening ---


def test_an_opened_blob_is_read_from_the_files_that_the_filler_names(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        filler.blob.bring(SIZE)
        handle = await client.open(
            upstream="ghcr.io",
            repository="team/app",
            digest=DIGEST,
            size=SIZE,
            first=(7, None),
            authorization="Basic abc",
        )
        assert handle.blob.size == SIZE
        assert handle.blob.read(0, SIZE) == pattern(0, SIZE)
        request = filler.requests("open")[0]
        for name, value in {
            "key": "blob",
            "upstream": "ghcr.io",
            "repository": "team/app",
            "digest": str(DIGEST),
            "size": SIZE,
            "first": [7, None],
            "authorization": "Basic abc",
        }.items():
            assert request[name] == value

    play(tmp_path, scenario)


def test_what_is_not_known_is_not_said(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        await opened(client)
        assert not {"size", "first", "authorization"} & filler.requests("open")[0].keys()

    play(tmp_path, scenario)


def test_an_answer_that_comes_byte_by_byte_is_the_same_answer(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        filler.pieces = 1
        assert (await opened(client)).blob.size == SIZE

    play(tmp_path, scenario)


def test_opening_waits_until_the_size_is_known(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        filler.answers["open"] = lambda request: {
            "type": "opened",
            "handle": filler.opened(request)["handle"],
            "state": "planning",
        }
        opening = asyncio.create_task(opened(client))
        await filler.until("open")
        await asyncio.sleep(0.02)
        assert not opening.done()
        filler.notify({"type": "state", "state": "streaming", **filler.files()})
        assert (await opening).blob.size == SIZE

    play(tmp_path, scenario)


def test_a_refused_opening_says_why_with_every_field(tmp_path: Path) -> None:
    failure = FillFailed(
        "deadline",
        "ghcr.io sent no byte within 15 s",
        key="fetch.deadlines.first_byte",
        value="15.2s",
        limit="15s",
        retry_after=3.0,
    )

    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        filler.answers["open"] = lambda _: {"type": "failed", **failure.as_message()}
        with pytest.raises(FillFailed) as raised:
            await opened(client)
        assert raised.value.as_message() == failure.as_message()
        assert str(raised.value) == failure.text

    play(tmp_path, scenario)


def test_an_opening_that_fails_while_its_size_is_sought_says_why(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        filler.answers["open"] = lambda request: filler.opened(request, state="planning")
        opening = asyncio.create_task(opened(client))
        await filler.until("open")
        await asyncio.sleep(0.01)
        filler.notify({"type": "state", "state": "refused", "code": "missing", "text": "gone"})
        with pytest.raises(FillFailed, match="gone") as raised:
            await opening
        assert raised.value.code == "missing"

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "files",
    [
        {"paths": [], "map": []},
        {"paths": ["/dev/null", "/dev/null"]},
        {"map": ["/dev/null"]},
        {"map": ["/etc/passwd"]},
    ],
)
def test_files_that_cannot_be_opened_fail_this_opening_only(tmp_path: Path, files: Message) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        right = filler.answers["open"]
        filler.answers["open"] = lambda request: filler.opened(request, **files)
        with pytest.raises(FillFailed, match="cannot be opened") as raised:
            await opened(client)
        assert raised.value.code == "protocol"
        filler.answers["open"] = right
        assert (await opened(client)).blob.size == SIZE

    play(tmp_path, scenario)


def test_files_that_were_evicted_before_they_were_opened_are_asked_for_once_more(
    tmp_path: Path,
) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        right = filler.answers["open"]
        gone: Message = {"paths": ["/nonexistent/blob"], "map": ["/nonexistent/blob.map"]}
        asked: list[Message] = []

        def once_gone(request: Message) -> Message | None:
            asked.append(request)
            return filler.opened(request, **gone) if len(asked) == 1 else right(request)

        filler.answers["open"] = once_gone
        assert (await opened(client)).blob.size == SIZE
        assert len(asked) == 2
        filler.answers["open"] = lambda request: filler.opened(request, **gone)
        with pytest.raises(FillFailed, match="evicted") as raised:
            await opened(client)
        assert raised.value.code == "upstream"

    play(tmp_path, scenario)


def test_without_a_filler_the_error_names_the_socket_and_the_time(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        await filler.stop()
        with pytest.raises(FillerUnreachable) as raised:
            await opened(client, 0.2)
        assert str(filler.path) in str(raised.value)
        assert "0.2 s" in str(raised.value)
        with pytest.raises(FillerUnreachable):
            await client.call({"type": "figures"}, 0.1)
        assert not client.connected

    play(tmp_path, scenario)


def test_a_filler_of_another_version_is_quoted(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        reason = f"this filler speaks version 99, not {PROTOCOL_VERSION}"
        filler.answers["hello"] = lambda _: {
            "type": "failed",
            "code": "protocol",
            "text": reason,
        }
        filler.drop()
        await filler.until_connected(2)
        with pytest.raises(FillerUnreachable, match="speaks version 99"):
            await opened(client, 0.3)

    play(tmp_path, scenario)


def test_an_opening_that_is_cancelled_is_closed_at_the_filler(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        right = filler.answers.pop("open")
        opening = asyncio.create_task(opened(client))
        request = await filler.until("open")
        opening.cancel()
        await asyncio.wait([opening])
        answered = right(request)
        assert answered is not None
        filler.answer(request, answered)
        assert (await filler.until("close"))["handle"] == answered["handle"]

    play(tmp_path, scenario)


# --- wants ---


@pytest.mark.parametrize("priority", PRIORITIES)
def test_a_want_says_what_and_how_urgently(tmp_path: Path, priority: str) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)
        async with handle.wanting(100, 50, priority, bulk=False):
            want = await filler.until("want")
        for name, value in {
            "handle": filler.requests("open")[0]["handle"],
            "offset": 100,
            "length": 50,
            "priority": priority,
            "bulk": False,
        }.items():
            assert want[name] == value

    play(tmp_path, scenario)


def test_a_reader_goes_on_as_soon_as_its_first_byte_is_here(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)
        async with waiting(filler, handle, 1000) as (want, reader):
            filler.blob.bring(500)
            filler.notify({"type": "arrived", "offset": 0, "length": 500})
            await asyncio.sleep(0.02)
            assert not reader.done()
            filler.blob.bring(1600)
            filler.notify({"type": "arrived", "offset": 500, "length": 1100})
            assert await reader == 600
            assert await handle.wait(want, 1000, 10) == 10
            assert handle.blob.read(1000, 600) == pattern(1000, 600)

    play(tmp_path, scenario)


def test_bytes_that_are_here_are_not_waited_for(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        filler.blob.bring(SIZE)
        handle = await opened(client)
        async with handle.wanting(0, SIZE, "client", bulk=True) as want:
            assert await handle.wait(want, 0, SIZE) == SIZE

    play(tmp_path, scenario)


def test_a_dropped_want_is_cancelled_and_an_answered_one_is_not(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)
        async with waiting(filler, handle):
            pass
        first = filler.requests("want")[0]
        assert (await filler.until("cancel"))["id"] == first["id"]
        async with handle.wanting(0, 10, "client", bulk=True) as want:
            filler.answer(await filler.until("want", 2), {"type": "done"})
            await handle.wait_done(want)
        await client_caught_up(filler, client)
        assert len(filler.requests("cancel")) == 1

    play(tmp_path, scenario)


def test_a_reader_that_is_cancelled_cancels_its_want(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)

        async def read() -> None:
            async with handle.wanting(0, SIZE, "client", bulk=True) as want:
                await handle.wait(want, 0, SIZE)

        reader = asyncio.create_task(read())
        request = await filler.until("want")
        reader.cancel()
        assert (await filler.until("cancel"))["id"] == request["id"]

    play(tmp_path, scenario)


def test_arrivals_are_followed_once_a_handle_while_anybody_wants_bytes(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)
        async with waiting(filler, handle), waiting(filler, handle, 5, 10):
            await client_caught_up(filler, client)
            assert len(filler.requests("follow")) == 1
            assert filler.requests("unfollow") == []
        await filler.until("unfollow")
        async with waiting(filler, handle):
            await filler.until("follow", 2)
        await client_caught_up(filler, client)
        assert len(filler.requests("unfollow")) == 2

    play(tmp_path, scenario)


def test_the_digest_of_the_whole_is_waited_for(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        filler.blob.bring(SIZE)
        handle = await opened(client)
        async with handle.wanting(0, SIZE, "client", bulk=True) as want:
            verifying = asyncio.create_task(handle.wait_verified(want))
            filler.notify({"type": "arrived", "offset": 0, "length": 1})
            await asyncio.sleep(0.02)
            assert not verifying.done()
            filler.blob.maps.set_verified(True)
            filler.notify({"type": "state", "state": "complete"})
            await verifying

    play(tmp_path, scenario)


# --- failures ---


def test_a_failure_reaches_the_reader_of_that_want_only(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)
        async with (
            waiting(filler, handle) as (want, reader),
            waiting(filler, handle, MIB, 10) as (_, other),
        ):
            filler.fail(filler.requests("want")[0], FillFailed("space", "the disk is full"))
            with pytest.raises(FillFailed, match="the disk is full"):
                await reader
            with pytest.raises(FillFailed, match="the disk is full"):
                await handle.wait_done(want)
            assert not other.done()
            filler.blob.bring(2 * MIB)
            filler.notify({"type": "arrived", "offset": 0, "length": 2 * MIB})
            assert await other == 10

    play(tmp_path, scenario)


def test_f38_a_withdrawn_blob_reaches_everybody_who_waits(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)
        async with (
            waiting(filler, handle) as (_, reader),
            waiting(filler, handle, MIB, 10) as (_, other),
            handle.wanting(0, SIZE, "client", bulk=True) as third,
            handle.wanting(0, 10, "warm", bulk=True) as fourth,
        ):
            verifying = asyncio.create_task(handle.wait_verified(third))
            finishing = asyncio.create_task(handle.wait_done(fourth))
            await filler.until("want", 4)
            filler.notify({"type": "state", "state": "refused", "code": "digest", "text": "bad"})
            for waiter in (reader, other, verifying, finishing):
                with pytest.raises(FillFailed, match="bad"):
                    await waiter
        assert handle.stale

    play(tmp_path, scenario)


def test_f38_a_want_of_a_withdrawn_blob_fails_at_once(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)
        filler.notify({"type": "state", "state": "refused", "code": "digest", "text": "bad"})
        await client_caught_up(filler, client)
        async with handle.wanting(0, SIZE, "client", bulk=True) as want:
            with pytest.raises(FillFailed, match="bad"):
                await handle.wait(want, 0, SIZE)
            with pytest.raises(FillFailed, match="bad"):
                await handle.wait_done(want)

    play(tmp_path, scenario)


def test_f35_an_evicted_blob_is_stale_and_its_reader_finishes(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        filler.blob.bring(SIZE)
        handle = await opened(client)
        filler.blob.path.unlink()
        filler.blob.map_path.unlink()
        filler.notify({"type": "state", "state": "evicted"})
        await client_caught_up(filler, client)
        assert handle.stale
        assert handle.blob.read(0, SIZE) == pattern(0, SIZE)

    play(tmp_path, scenario)


def test_closing_a_handle_wakes_those_who_still_wait_on_it(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)
        async with waiting(filler, handle) as (_, reader):
            await asyncio.sleep(0)
            client.close(handle)
            with pytest.raises(FillFailed):
                await reader

    play(tmp_path, scenario)


# --- other calls ---


def test_a_call_gets_its_own_answer(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        first = asyncio.create_task(client.call({"type": "pin", "digest": "a", "pinned": True}))
        second = asyncio.create_task(client.call({"type": "evict", "digest": "b"}))
        filler.fail(await filler.until("evict"), FillFailed("refused", "it is pinned"))
        filler.answer(await filler.until("pin"), {"type": "ok"})
        assert (await first)["type"] == "ok"
        with pytest.raises(FillFailed, match="it is pinned") as raised:
            await second
        assert raised.value.code == "refused"

    play(tmp_path, scenario)


def test_a_call_without_an_answer_ends_at_its_deadline(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        started = time.monotonic()
        with pytest.raises(FillerUnreachable, match=r"0\.2 s"):
            await client.call({"type": "figures"}, 0.2)
        assert time.monotonic() - started >= 0.2
        # The late answer is for nobody, and harms nobody.
        filler.answer(await filler.until("figures"), {"type": "figures"})
        await client_caught_up(filler, client)

    play(tmp_path, scenario)


def test_a_use_is_noted(tmp_path: Path) -> None:
    async def scenario(filler: ScriptedFiller, client: FillClient) -> None:
        handle = await opened(client)
        client.touch(handle)
        touch = await filler.until("touch")
        assert touch["handle"] == filler.requests("open")[0]["handle"]

    play(tmp_path, scenario)
