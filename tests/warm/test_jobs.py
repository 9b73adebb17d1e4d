"""Warm jobs: what is wanted of the filler, how far they are, how they end, how they go on."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.registry.errors import (
    RegistryError,
    UpstreamDeadline,
    UpstreamDenied,
    UpstreamUnavailable,
)
from headstart.registry.upstream import Deadlines
from headstart.store.errors import FillerUnreachable, FillFailed
from proxy.warm import jobs as jobs_module
from proxy.warm.bring import MOST_WANTS
from proxy.warm.failure import CODES, failure_of
from proxy.warm.jobs import JobsFull, JobUnknown
from tests.warm.situation import (
    HOST,
    MIB,
    Situation,
    StoredManifests,
    descriptor,
    run,
    situation,
    until,
    until_ended,
)

LAYERS = [descriptor("one", 3 * MIB), descriptor("two", 5 * MIB)]
ONE, TWO = Digest.of(b"one"), Digest.of(b"two")
CONFIG = Digest.of(b"config of team/app 1")


def with_image() -> StoredManifests:
    """team/app:1 has a config and two layers."""
    manifests = StoredManifests()
    manifests.put_image("team/app", "1", LAYERS)
    return manifests


async def wanted(around: Situation, count: int) -> None:
    await until(lambda: len(around.fills.open_wants) == count)


def test_config_and_layers_are_wanted_whole_and_the_job_ends_when_all_are_verified(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            job = await around.submit(priority="prefetch")
            await wanted(around, 3)
            assert {(want["offset"], want["length"]) for want in around.fills.wants} == {
                (0, 100),
                (0, 3 * MIB),
                (0, 5 * MIB),
            }
            assert {want["priority"] for want in around.fills.wants} == {"prefetch"}
            assert all(want["bulk"] for want in around.fills.wants)
            assert {opened["size"] for opened in around.fills.opens} == {100, 3 * MIB, 5 * MIB}
            for digest in (CONFIG, ONE):
                around.fills.finish(digest)
            await wanted(around, 1)
            assert job.state == "running"
            around.fills.finish(TWO)
            assert await until_ended(job) == "done"
            described = job.describe()
            assert described["bytes_done"] == described["bytes_wanted"] == 8 * MIB + 100
            assert described["eta_seconds"] is None

    run(test)


def test_progress_is_that_of_the_maps(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            job = await around.submit()
            await wanted(around, 3)
            around.fills.arrive(TWO, 2 * MIB)
            job.sample()
            await asyncio.sleep(0.2)
            around.fills.arrive(TWO, 4 * MIB)
            job.sample()
            described: Any = job.describe()
            layers = {layer["digest"]: layer for layer in described["images"][0]["layers"]}
            assert list(layers) == [str(CONFIG), str(ONE), str(TWO)]
            assert layers[str(TWO)] == {
                "digest": str(TWO),
                "media_type": "layer",
                "size": 5 * MIB,
                "done": 4 * MIB,
                "state": "filling",
            }
            assert (described["bytes_done"], described["bytes_wanted"]) == (
                4 * MIB,
                8 * MIB + 100,
            )
            assert 0 < described["rate"] <= 4 * MIB / 0.2
            left = described["bytes_wanted"] - described["bytes_done"]
            assert described["eta_seconds"] == pytest.approx(left / described["rate"], abs=0.06)

    run(test)


def test_what_is_here_already_is_done_at_once_and_counts_for_no_rate(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            for digest, size in ((CONFIG, 100), (ONE, 3 * MIB), (TWO, 5 * MIB)):
                around.fills.blob(digest, size).finish()
            job = await around.submit()
            assert await until_ended(job) == "done"
            assert around.fills.wants == []
            assert job.bytes_done == 8 * MIB + 100
            assert sum(blob.done - (blob.found or 0) for blob in job.blobs) == 0

    run(test)


def test_the_same_work_joins_the_running_job_and_makes_it_more_urgent(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            first = await around.submit(priority="background")
            await wanted(around, 3)
            assert await around.submit(priority="background") is first
            assert await around.submit(priority="warm") is first
            await until(lambda: len(around.fills.wants) == 6)
            assert {want["priority"] for want in around.fills.wants[3:]} == {"warm"}
            # The earlier wants stay until the end: nothing stops in between.
            assert around.fills.cancels == []
            assert await around.submit(priority="background") is first
            assert first.describe()["priority"] == "warm"
            for digest in (CONFIG, ONE, TWO):
                around.fills.finish(digest)
            assert await until_ended(first) == "done"
            assert await around.submit() is not first

    run(test)


@pytest.mark.parametrize(
    "other",
    [{"platform": "linux/arm64"}, {"policy": "none"}, {"deadline": "1h"}, {"image": "x/y:2"}],
)
def test_other_work_is_another_job(tmp_path: Path, other: dict[str, str]) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            if "image" in other:
                other["image"] = f"{HOST}/{other['image']}"
            assert await around.submit() is not await around.submit(**other)

    run(test)


def test_cancelling_drops_the_wants_and_nothing_more(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            job = await around.submit()
            await wanted(around, 3)
            around.fills.finish(ONE)
            await until(lambda: [blob.state for blob in job.blobs].count("done") == 1)
            cancelled = await around.jobs.cancel(job.id)
            assert cancelled.state == "cancelled"
            await wanted(around, 0)
            assert len(around.fills.cancels) == 2
            assert {blob.state for blob in job.blobs} == {"done", "waiting"}
            assert (await around.jobs.cancel(job.id)).state == "cancelled"

    run(test)


def test_a_job_that_has_not_begun_can_be_cancelled(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            job = await around.submit()
            assert (await around.jobs.cancel(job.id)).state == "cancelled"

    run(test)


@pytest.mark.parametrize(
    ("failure", "shown"),
    [
        (
            FillFailed("deadline", "no byte came", key="stall", value="20s", limit="64KiB"),
            {
                "code": "deadline",
                "text": "no byte came",
                "key": "stall",
                "value": "20s",
                "limit": "64KiB",
            },
        ),
        (FillFailed("digest", "other bytes"), {"code": "digest", "text": "other bytes"}),
    ],
)
def test_the_first_failure_of_a_blob_ends_the_job_by_its_name(
    tmp_path: Path, failure: FillFailed, shown: dict[str, str]
) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            job = await around.submit()
            await wanted(around, 3)
            around.fills.fail(ONE, failure)
            assert await until_ended(job) == "failed"
            described: Any = job.describe()
            assert described["failure"] == shown
            states = {each["digest"]: each["state"] for each in described["images"][0]["layers"]}
            assert states[str(ONE)] == "failed"
            await wanted(around, 0)

    run(test)


def test_a_blob_that_the_upstream_does_not_have_ends_the_job(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            around.fills.refusals[str(TWO)] = FillFailed("missing", f"no {TWO}")
            job = await around.submit()
            assert await until_ended(job) == "failed"
            assert job.failure is not None
            assert job.failure.code == "missing"

    run(test)


def test_a_blob_of_another_size_than_the_manifest_says_ends_the_job(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            around.fills.blob(ONE, 7)
            job = await around.submit()
            assert await until_ended(job) == "failed"
            assert job.failure is not None
            assert job.failure.code == "digest"
            assert f"{3 * MIB}" in job.failure.text

    run(test)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UpstreamUnavailable("registry.example: connection refused"), "upstream"),
        (UpstreamDenied("registry.example: denied"), "denied"),
        (UpstreamDeadline("connect", 5.0, "no connection in 5.0 s"), "deadline"),
    ],
)
def test_what_the_registry_says_ends_the_job_by_its_name(
    tmp_path: Path, error: Exception, code: str
) -> None:
    async def test() -> None:
        manifests = with_image()
        manifests.error = error
        async with situation(tmp_path, manifests) as around:
            job = await around.submit()
            assert await until_ended(job) == "failed"
            assert job.failure is not None
            assert (job.failure.code, job.failure.text) == (code, str(error))

    run(test)


def test_every_registry_error_has_a_code() -> None:
    kinds = [RegistryError, FillerUnreachable, InvalidInput]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        assert any(base in CODES for base in kind.__mro__)
    assert failure_of(FillFailed("space", "full")).code == "space"
    deadline = failure_of(UpstreamDeadline("connect", 5.0, "slow"))
    assert (deadline.key, deadline.value) == ("deadlines.connect", "5")


def test_the_callers_deadline_ends_the_job_by_its_name(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            job = await around.submit(deadline="400ms")
            await wanted(around, 3)
            around.fills.arrive(TWO, 4 * MIB)
            assert await until_ended(job) == "failed"
            assert job.failure is not None
            assert job.failure.as_message() == {
                "code": "deadline",
                "text": "4.0 MiB of 8.0 MiB were there after 400ms (deadline)",
                "key": "deadline",
                "value": "400ms",
            }
            await wanted(around, 0)

    run(test)


def test_the_upstreams_deadline_of_a_job_ends_it_by_its_key(tmp_path: Path) -> None:
    async def test() -> None:
        deadlines = Deadlines(job=0.3)
        async with situation(tmp_path, with_image(), deadlines=deadlines) as around:
            job = await around.submit(deadline="1h")
            assert await until_ended(job) == "failed"
            assert job.failure is not None
            assert job.failure.key == f"upstreams.{HOST}.deadlines.job"
            assert job.failure.value == "300ms"

    run(test)


def test_the_deadline_counts_in_the_queue_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "RUN_AT_ONCE", 1)

    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            first = await around.submit()
            await wanted(around, 3)
            second = await around.submit(deadline="300ms")
            assert await until_ended(second) == "failed"
            assert second.failure is not None
            assert second.failure.text == "it was still queued after 300ms (deadline)"
            assert first.state == "running"

    run(test)


def test_jobs_wait_for_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "RUN_AT_ONCE", 1)

    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            first = await around.submit()
            second = await around.submit(policy="none")
            await wanted(around, 3)
            assert (first.state, second.state) == ("running", "queued")
            for digest in (CONFIG, ONE, TWO):
                around.fills.finish(digest)
            assert await until_ended(first) == "done"
            assert await until_ended(second) == "done"

    run(test)


def test_the_queue_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "MOST_UNFINISHED", 2)

    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            first = await around.submit()
            await around.submit(policy="none")
            with pytest.raises(JobsFull, match="2 jobs have not ended"):
                await around.submit(policy="all")
            assert await around.submit() is first

    run(test)


def test_more_than_the_cache_holds_is_not_begun(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            around.capacity = 5 * MIB
            job = await around.submit()
            assert await until_ended(job) == "failed"
            assert job.failure is not None
            assert job.failure.code == "space"
            assert job.failure.text.startswith("the images have 8.0 MiB, the cache holds")
            assert around.fills.opens == []

    run(test)


def test_only_so_many_blobs_are_wanted_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        manifests = StoredManifests()
        many = [descriptor(f"layer {number}", MIB) for number in range(MOST_WANTS + 20)]
        manifests.put_image("team/app", "1", many)
        async with situation(tmp_path, manifests) as around:
            job = await around.submit()
            await wanted(around, MOST_WANTS)
            await asyncio.sleep(0.05)
            assert len(around.fills.opens) == MOST_WANTS
            around.fills.automatic = True
            for want in around.fills.opens:
                around.fills.finish(Digest.parse(str(want["digest"])))
            assert await until_ended(job) == "done"
            assert len(around.fills.opens) == MOST_WANTS + 21

    run(test)


def test_an_index_is_resolved_for_the_platform_and_all_means_all(tmp_path: Path) -> None:
    async def test() -> None:
        manifests = StoredManifests()
        entries = []
        for architecture in ("amd64", "arm64"):
            digest = manifests.put_image("team/app", None, [descriptor(architecture, MIB)])
            platform = {"os": "linux", "architecture": architecture}
            size = len(manifests.bodies[f"team/app {digest}"][0])
            entries.append({"digest": str(digest), "size": size, "platform": platform})
        manifests.put("team/app", "1", {"manifests": entries})
        async with situation(tmp_path, manifests) as around:
            around.fills.automatic = True
            job = await around.submit(platform="linux/arm64/v8")
            assert await until_ended(job) == "done"
            opened = {each["digest"] for each in around.fills.opens}
            assert str(Digest.of(b"arm64")) in opened
            assert str(Digest.of(b"amd64")) not in opened
            (image,) = job.images
            assert image.platform == "linux/arm64"

            everything = await around.submit(platform="all")
            assert await until_ended(everything) == "done"
            assert [image.platform for image in everything.images] == [
                "linux/amd64",
                "linux/arm64",
            ]
            # Their config is the same blob: it is wanted, and counted, once.
            assert everything.bytes_wanted == 2 * MIB + 100

            nothing = await around.submit(platform="linux/s390x")
            assert await until_ended(nothing) == "failed"
            assert nothing.failure is not None
            assert nothing.failure.code == "missing"
            assert nothing.failure.text.endswith(
                "is not there for linux/s390x; it is for linux/amd64, linux/arm64"
            )

    run(test)


def test_layers_outside_of_the_registry_are_skipped_and_named(tmp_path: Path) -> None:
    async def test() -> None:
        manifests = StoredManifests()
        foreign = descriptor("windows", 9 * MIB, urls=["https://elsewhere.example/blob"])
        manifests.put_image("team/app", "1", [LAYERS[0], foreign])
        async with situation(tmp_path, manifests) as around:
            around.fills.automatic = True
            job = await around.submit()
            assert await until_ended(job) == "done"
            windows = str(Digest.of(b"windows"))
            assert windows not in {each["digest"] for each in around.fills.opens}
            assert job.bytes_wanted == 3 * MIB + 100
            assert [blob.state for blob in job.blobs] == ["done", "done", "skipped"]
            assert any(windows in note for note in job.notes)

    run(test)


@pytest.mark.parametrize(
    ("policy", "opened", "note"),
    [
        ("auto", 3, None),
        ("all", 3, None),
        ("none", 1, "no layers"),
        ("list", 3, "no list is known for it; everything is brought"),
        ("landmark", 3, "no landmark is known for it; everything is brought"),
    ],
)
def test_what_the_policies_mean(tmp_path: Path, policy: str, opened: int, note: str | None) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            around.fills.automatic = True
            job = await around.submit(policy=policy)
            assert await until_ended(job) == "done"
            assert len(around.fills.opens) == opened
            assert [text for text in job.notes if note and note in text] == job.notes

    run(test)


def test_a_tag_that_could_not_be_checked_is_noted(tmp_path: Path) -> None:
    async def test() -> None:
        manifests = with_image()
        manifests.warning = "the upstream does not answer; this is what the tag meant 5m ago"
        async with situation(tmp_path, manifests) as around:
            around.fills.automatic = True
            job = await around.submit()
            assert await until_ended(job) == "done"
            assert job.notes == [f"{HOST}/team/app:1: {manifests.warning}"]

    run(test)


def test_jobs_go_on_in_the_next_process_with_the_image_that_they_had_resolved(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        manifests = with_image()
        async with situation(tmp_path, manifests) as around:
            around.fills.automatic = True
            ended = await around.submit(policy="none")
            assert await until_ended(ended) == "done"
            around.fills.automatic = False
            job = await around.submit(priority="background")
            await wanted(around, 2)
            await around.submit(priority="prefetch")
        # The tag moves while nobody runs.
        manifests.put_image("team/app", "1", [descriptor("three", MIB)])
        async with situation(tmp_path, manifests) as around:
            shown = (await around.jobs.get(ended.id)).describe()
            assert shown == ended.describe()
            again = await around.jobs.get(job.id)
            assert again is not job
            assert again.describe()["priority"] == "prefetch"
            assert await around.submit() is again
            await wanted(around, 3)
            opened = {each["digest"] for each in around.fills.opens}
            assert opened == {str(CONFIG), str(ONE), str(TWO)}
            for digest in (CONFIG, ONE, TWO):
                around.fills.finish(digest)
            assert await until_ended(again) == "done"

    run(test)


def test_a_filler_that_restarts_in_mid_job_costs_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            job = await around.submit()
            await wanted(around, 3)
            await around.fills.stop()
            await asyncio.sleep(0.1)
            await around.fills.start()
            await wanted(around, 3)
            for digest in (CONFIG, ONE, TWO):
                around.fills.finish(digest)
            assert await until_ended(job) == "done"

    run(test)


def test_a_record_that_cannot_be_read_is_dropped(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path) as around:
            assert around.index is not None
            await around.index.put("job", "odd", {"request": {"images": ["elsewhere.example/x"]}})
            await around.index.put("job", "odder", {"request": 5})
        async with situation(tmp_path) as around:
            assert await around.jobs.all() == []
            assert around.index is not None
            assert await around.index.items("job") == []

    run(test)


def test_ended_jobs_are_kept_for_a_day_and_no_more_than_so_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "MOST_ENDED", 2)

    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            around.fills.automatic = True
            ids = []
            for policy in ("auto", "all", "none"):
                job = await around.submit(policy=policy)
                assert await until_ended(job) == "done"
                ids.append(job.id)
            assert [job.id for job in await around.jobs.all()] == [ids[2], ids[1]]
            with pytest.raises(JobUnknown):
                await around.jobs.get(ids[0])
            assert around.index is not None
            assert len(await around.index.items("job")) == 2
            job.finished_at = (job.finished_at or 0.0) - jobs_module.ENDED_SECONDS - 1
            assert [job.id for job in await around.jobs.all()] == [ids[1]]

    run(test)


def test_followers_see_every_change_but_no_more_than_four_a_second(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            job = await around.submit()
            seen: list[tuple[float, Any]] = []
            loop = asyncio.get_running_loop()

            async def follow() -> None:
                async for described in around.jobs.follow(job):
                    seen.append((loop.time(), described))

            following = asyncio.create_task(follow())
            await wanted(around, 3)
            for step in range(1, 40):
                around.fills.arrive(TWO, step * MIB // 10)
                job.sample()
                await asyncio.sleep(0.02)
            for digest in (CONFIG, ONE, TWO):
                around.fills.finish(digest)
            await following
            gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(seen)]
            assert min(gaps) >= 0.24
            assert seen[-1][1]["state"] == "done"
            assert len(seen) >= 3
            assert job.followers == 0

    run(test)


def test_followers_are_let_go_when_the_process_ends(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            job = await around.submit()
            following = asyncio.create_task(_collect(around, job.id))
            await wanted(around, 3)
            around.jobs.stop_following()
            seen = await asyncio.wait_for(following, 2)
            assert seen[-1]["state"] == "running"

    run(test)


async def _collect(around: Situation, id: str) -> list[Any]:
    job = await around.jobs.get(id)
    return [described async for described in around.jobs.follow(job)]
