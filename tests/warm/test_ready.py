"""Jobs that want images ready: layer images instead of blobs, and blobs where there can be none."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from headstart.content.digest import Digest
from headstart.store.errors import FillFailed
from proxy.warm.job import WarmJob
from proxy.warm.request import WarmRequest
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

ONE, TWO = Digest.of(b"one"), Digest.of(b"two")
TOC = {"containerd.io/snapshot/stargz/toc.digest": str(Digest.of(b"toc"))}
LAYERS = [descriptor("one", 3 * MIB), descriptor("two", 5 * MIB, annotations=TOC)]


def diff_id(name: str) -> Digest:
    """Of the layer of this name."""
    return Digest.of(f"tar of {name}".encode())


def config_of(*names: str) -> bytes:
    """An image's configuration, with the diff IDs of some layers."""
    return json.dumps({"rootfs": {"diff_ids": [str(diff_id(name)) for name in names]}}).encode()


CONFIG = config_of("one", "two")


def with_image() -> StoredManifests:
    """team/app:1 has two layers and a configuration that names their diff IDs."""
    manifests = StoredManifests()
    manifests.put_image_of("team/app", "1", CONFIG, LAYERS)
    return manifests


def opened(around: Situation, key: str) -> list[str]:
    """The digests of what has been opened, blobs or layer images."""
    return [each["digest"] for each in around.fills.opens if each["key"] == key]  # type: ignore[misc]


def wanted_layers(around: Situation) -> list[dict[str, object]]:
    """Wants of whole layer images that are still open."""
    return [want for want in around.fills.open_wants if want["length"] is None]


async def bring_config(around: Situation, *configs: bytes) -> None:
    """Let configurations arrive once they are wanted; nothing else is before."""
    await until(lambda: len(around.fills.open_wants) == len(configs or (CONFIG,)))
    for config in configs or (CONFIG,):
        around.fills.finish(Digest.of(config))


def test_a_job_ends_when_every_layer_image_is_complete(tmp_path: Path) -> None:
    async def test() -> None:
        manifests = with_image()
        async with situation(tmp_path, manifests) as around:
            fills = around.fills
            fills.put(CONFIG)
            job = await around.submit(ready=True, priority="prefetch")
            await bring_config(around)
            await until(lambda: len(wanted_layers(around)) == 2)
            assert opened(around, "blob") == [str(Digest.of(CONFIG))]
            said = [each for each in fills.opens if each["key"] == "layer"]
            assert [
                (one["digest"], one["diff_id"], one["size"], one["position"], one["annotations"])
                for one in said
            ] == [
                (str(ONE), str(diff_id("one")), 3 * MIB, 0, {}),
                (str(TWO), str(diff_id("two")), 5 * MIB, 1, TOC),
            ]
            assert {(want["offset"], want["priority"]) for want in wanted_layers(around)} == {
                (0, "prefetch")
            }
            # So that the snapshotter knows the chain IDs before any pull.
            (told,) = fills.calls
            assert told["type"] == "image"
            (manifest,) = {digest for key in manifests.bodies if (digest := key.split()[1]) != "1"}
            assert told["manifest"] == manifest
            assert [layer["diff_id"] for layer in told["layers"]] == [  # type: ignore[attr-defined]
                str(diff_id("one")),
                str(diff_id("two")),
            ]

            fills.enter(ONE, "complete")
            fills.layer(TWO).arrive(fills.layer(TWO).size // 4096)
            fills.enter(TWO, "mountable")
            await until(lambda: [blob.state for blob in job.blobs] == ["done", "done", "filling"])
            job.sample()
            # All is here, and not verified yet.
            assert job.bytes_done == job.bytes_wanted
            assert job.state == "running"
            fills.enter(TWO, "complete")
            assert await until_ended(job) == "done"
            described = job.describe()
            assert described["ready"] is True
            assert described["bytes_done"] == described["bytes_wanted"] == 8 * MIB + len(CONFIG)
            assert described["notes"] == []

    run(test)


def test_images_that_are_ready_are_done_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            around.fills.put(CONFIG)
            around.fills.finish(Digest.of(CONFIG))
            for digest in (ONE, TWO):
                around.fills.layer(digest).state = "complete"
            job = await around.submit(ready=True)
            assert await until_ended(job) == "done"
            assert around.fills.wants == []
            assert sum(blob.done - (blob.found or 0) for blob in job.blobs) == 0

    run(test)


def test_more_urgent_work_wants_the_layer_images_more_urgently(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            around.fills.put(CONFIG)
            job = await around.submit(ready=True, priority="background")
            await bring_config(around)
            await until(lambda: len(wanted_layers(around)) == 2)
            assert await around.submit(ready=True, priority="warm") is job
            await until(lambda: len(wanted_layers(around)) == 4)
            assert [want["priority"] for want in wanted_layers(around)] == [
                "background",
                "background",
                "warm",
                "warm",
            ]
            assert around.fills.cancels == []
            # The same image as blobs is other work.
            assert await around.submit() is not job

    run(test)


def test_cancelling_drops_the_wants_of_layer_images(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            around.fills.put(CONFIG)
            job = await around.submit(ready=True)
            await bring_config(around)
            await until(lambda: len(wanted_layers(around)) == 2)
            await around.jobs.cancel(job.id)
            assert job.state == "cancelled"
            await until(lambda: around.fills.open_wants == [])
            assert [blob.state for blob in job.blobs] == ["done", "waiting", "waiting"]

    run(test)


def test_progress_of_layer_images_is_told_in_bytes_of_their_blobs(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            fills = around.fills
            fills.put(CONFIG)
            job = await around.submit(ready=True)
            await bring_config(around)
            await until(lambda: len(wanted_layers(around)) == 2)
            fills.layer(ONE).used = MIB
            fills.enter(ONE, "streaming")
            fills.layer(TWO).arrive(16)
            fills.enter(TWO, "mountable")
            share = 5 * MIB * 16 // 64

            def shown() -> list[object]:
                described: Any = job.describe()
                return [layer["done"] for layer in described["images"][0]["layers"]]

            def looked() -> bool:
                job.sample()
                return shown() == [len(CONFIG), MIB, share]

            await until(looked)
            # A filler that starts again knows less for a moment, and says so by its state.
            fills.enter(TWO, "planning")
            fills.enter(ONE, "complete")
            await until(lambda: [blob.state for blob in job.blobs].count("done") == 2)
            job.sample()
            assert shown() == [len(CONFIG), 3 * MIB, share]

    run(test)


@pytest.mark.parametrize("code", ["refused", "digest"])
@pytest.mark.parametrize("known", [True, False], ids=["known before", "found in its tar"])
def test_what_cannot_be_a_layer_image_is_brought_as_a_blob_with_a_note(
    tmp_path: Path, code: str, known: bool
) -> None:
    async def test() -> None:
        failure = FillFailed(code, f"{ONE}: it has no entry for its directory usr/")
        async with situation(tmp_path, with_image()) as around:
            fills = around.fills
            fills.put(CONFIG)
            if known:
                fills.refusals[str(diff_id("one"))] = failure
            job = await around.submit(ready=True)
            states: list[set[str]] = []
            fills.on_open = lambda _: states.append({blob.state for blob in job.blobs})
            await bring_config(around)
            if not known:
                await until(lambda: len(wanted_layers(around)) == 2)
                fills.refuse(ONE, failure)
            await until(lambda: str(ONE) in opened(around, "blob"))
            fills.enter(TWO, "complete")
            await until(lambda: [want["length"] for want in fills.open_wants] == [3 * MIB])
            fills.finish(ONE)
            assert await until_ended(job) == "done"
            assert all("failed" not in seen for seen in states)
            assert job.notes == [
                f"{ONE}: cannot be mounted and is brought as a blob: "
                "it has no entry for its directory usr/"
            ]
            assert opened(around, "blob") == [str(Digest.of(CONFIG)), str(ONE)]
            assert job.bytes_done == job.bytes_wanted

    run(test)


def test_a_layer_whose_blob_is_wrong_fails_the_job_as_a_blob_does(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            fills = around.fills
            fills.put(CONFIG)
            job = await around.submit(ready=True)
            await bring_config(around)
            await until(lambda: len(wanted_layers(around)) == 2)
            fills.refuse(ONE, FillFailed("digest", f"{ONE}: its gzip stream is damaged"))
            await until(lambda: str(ONE) in opened(around, "blob"))
            await until(lambda: 3 * MIB in [want["length"] for want in fills.open_wants])
            fills.fail(ONE, FillFailed("digest", f"{ONE}: its bytes are others"))
            assert await until_ended(job) == "failed"
            assert job.failure is not None
            assert job.failure.as_message() == {
                "code": "digest",
                "text": f"{ONE}: its bytes are others",
            }
            await until(lambda: fills.open_wants == [])

    run(test)


@pytest.mark.parametrize("code", ["space", "missing", "denied", "upstream", "deadline"])
def test_every_other_failure_of_a_layer_image_ends_the_job_by_its_name(
    tmp_path: Path, code: str
) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            around.fills.put(CONFIG)
            job = await around.submit(ready=True)
            await bring_config(around)
            await until(lambda: len(wanted_layers(around)) == 2)
            around.fills.refuse(TWO, FillFailed(code, "not this time"))
            assert await until_ended(job) == "failed"
            assert job.failure is not None
            assert (job.failure.code, job.failure.text) == (code, "not this time")
            assert [blob.state for blob in job.blobs] == ["done", "waiting", "failed"]
            assert opened(around, "blob") == [str(Digest.of(CONFIG))]

    run(test)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "its registry has no configuration of it"),
        (b"{}", "its configuration names no diff IDs"),
        (b"a" * 100, "its configuration names no diff IDs"),
        (config_of("one"), "it has 2 layers and 1 diff IDs"),
        (config_of("one", "two", "three"), "it has 2 layers and 3 diff IDs"),
    ],
)
def test_what_is_no_image_with_a_root_file_system_is_brought_as_blobs_with_a_note(
    tmp_path: Path, config: bytes | None, reason: str
) -> None:
    async def test() -> None:
        manifests = StoredManifests()
        if config is None:
            manifests.put("team/app", "1", {"layers": LAYERS})
        else:
            manifests.put_image_of("team/app", "1", config, LAYERS)
        async with situation(tmp_path, manifests) as around:
            if config is not None:
                around.fills.put(config)
            around.fills.automatic = True
            job = await around.submit(ready=True)
            assert await until_ended(job) == "done"
            assert opened(around, "layer") == []
            assert opened(around, "blob")[-2:] == [str(ONE), str(TWO)]
            assert around.fills.calls == []
            assert job.notes == [
                f"{HOST}/team/app:1: its layers cannot be mounted and are brought as blobs: "
                f"{reason}"
            ]

    run(test)


def test_a_configuration_outside_of_the_registry_is_not_brought(tmp_path: Path) -> None:
    async def test() -> None:
        manifests = StoredManifests()
        config = descriptor("windows", 100, urls=["https://elsewhere.example/blob"])
        manifests.put("team/app", "1", {"config": config, "layers": LAYERS})
        async with situation(tmp_path, manifests) as around:
            around.fills.automatic = True
            job = await around.submit(ready=True)
            assert await until_ended(job) == "done"
            assert opened(around, "layer") == []
            assert opened(around, "blob") == [str(ONE), str(TWO)]
            assert any("its registry has no configuration of it" in note for note in job.notes)

    run(test)


def test_an_image_without_layers_is_ready_with_its_configuration(tmp_path: Path) -> None:
    async def test() -> None:
        manifests = StoredManifests()
        manifests.put_image_of("team/app", "1", config_of(), [])
        async with situation(tmp_path, manifests) as around:
            around.fills.put(config_of())
            around.fills.automatic = True
            job = await around.submit(ready=True)
            assert await until_ended(job) == "done"
            assert opened(around, "blob") == [str(Digest.of(config_of()))]
            assert job.notes == []

    run(test)


def test_layers_outside_of_the_registry_are_not_made_either(tmp_path: Path) -> None:
    async def test() -> None:
        manifests = StoredManifests()
        foreign = descriptor("two", 9 * MIB, urls=["https://elsewhere.example/blob"])
        manifests.put_image_of("team/app", "1", CONFIG, [LAYERS[0], foreign])
        async with situation(tmp_path, manifests) as around:
            around.fills.put(CONFIG)
            around.fills.automatic = True
            job = await around.submit(ready=True)
            assert await until_ended(job) == "done"
            assert opened(around, "layer") == [str(ONE)]
            assert [blob.state for blob in job.blobs] == ["done", "done", "skipped"]

    run(test)


def images(*configs: tuple[str, bytes, Sequence[dict[str, object]]]) -> StoredManifests:
    """Images of team/app by tag, configuration and layers."""
    manifests = StoredManifests()
    for tag, config, layers in configs:
        manifests.put_image_of("team/app", tag, config, layers)
    return manifests


def test_a_layer_that_several_images_share_is_made_once(tmp_path: Path) -> None:
    async def test() -> None:
        other = config_of("one", "three")
        manifests = images(
            ("1", CONFIG, LAYERS),
            ("2", other, [LAYERS[0], descriptor("three", MIB)]),
            ("3", CONFIG, [*LAYERS]),
        )
        async with situation(tmp_path, manifests) as around:
            for config in (CONFIG, other):
                around.fills.put(config)
            around.fills.automatic = True
            names = [f"{HOST}/team/app:{tag}" for tag in "123"]
            asked = {"images": names, "platform": "linux/amd64", "ready": True}
            job = await submit(around, asked)
            assert await until_ended(job) == "done"
            three = Digest.of(b"three")
            assert sorted(opened(around, "layer")) == sorted(map(str, (ONE, TWO, three)))
            assert sorted(opened(around, "blob")) == sorted(
                str(Digest.of(config)) for config in (CONFIG, other)
            )
            assert len(around.fills.calls) == 3

    run(test)


async def submit(around: Situation, asked: dict[str, object]) -> WarmJob:
    """A job of several images."""
    return await around.jobs.submit(WarmRequest.read(asked, around.upstreams))


@pytest.mark.parametrize("honest_first", [True, False])
def test_where_images_differ_about_a_layer_the_wrong_one_is_refused_with_its_reason(
    tmp_path: Path, honest_first: bool
) -> None:
    """As the filler does it: one that is open under another diff ID lets no other in."""

    async def test() -> None:
        honest, lying = config_of("one"), config_of("another")
        configs = (honest, lying) if honest_first else (lying, honest)
        manifests = images(
            *((str(number), each, LAYERS[:1]) for number, each in enumerate(configs))
        )
        async with situation(tmp_path, manifests) as around:
            fills = around.fills
            for config in configs:
                fills.put(config)
            asked: dict[str, object] = {
                "images": [f"{HOST}/team/app:{number}" for number in range(2)],
                "platform": "linux/amd64",
                "ready": True,
            }
            job = await submit(around, asked)
            await bring_config(around, *configs)
            for number in range(2):
                await until(lambda count=number + 1: len(opened(around, "layer")) == count)  # type: ignore[misc]
                await until(lambda: len(wanted_layers(around)) == 1)
                claimed = fills.opens[-1]["diff_id"]
                if claimed == str(diff_id("one")):
                    fills.enter(ONE, "complete")
                    fills.layers.clear()
                else:
                    fills.refuse(ONE, FillFailed("digest", f"{ONE}: its tar has another digest"))
            await until(lambda: str(ONE) in opened(around, "blob"))
            await until(lambda: len(fills.open_wants) == 1)
            fills.finish(ONE)
            assert await until_ended(job) == "done"
            assert job.notes == [
                f"{ONE}: cannot be mounted and is brought as a blob: its tar has another digest"
            ]

    run(test)


def test_an_image_of_which_the_filler_takes_no_note_is_made_all_the_same(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            around.fills.put(CONFIG)
            around.fills.automatic = True
            around.fills.answers["image"] = FillFailed("protocol", "an image has 1 to 1 layers")
            job = await around.submit(ready=True)
            assert await until_ended(job) == "done"
            assert opened(around, "layer") == [str(ONE), str(TWO)]
            assert job.notes == [
                f"{HOST}/team/app:1: the mount does not know it before its pull: "
                "an image has 1 to 1 layers"
            ]

    run(test)


def test_what_descriptors_say_of_uncompressed_sizes_counts_for_the_room_in_the_cache(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        size = {"io.containers.estargz.uncompressed-size": str(20 * MIB)}
        odd = {"io.containers.estargz.uncompressed-size": "-5"}
        layers = [
            descriptor("one", 3 * MIB, annotations=size),
            descriptor("two", 5 * MIB, annotations=odd),
        ]
        async with situation(tmp_path, images(("1", CONFIG, layers))) as around:
            around.fills.put(CONFIG)
            around.fills.automatic = True
            around.capacity = 24 * MIB
            job = await around.submit(ready=True)
            assert await until_ended(job) == "failed"
            assert job.failure is not None
            assert job.failure.code == "space"
            assert job.failure.text.startswith("the images have 25 MiB, the cache holds at most 24")
            assert around.fills.opens == []
            assert await until_ended(await around.submit()) == "done"
            around.capacity = 26 * MIB
            assert await until_ended(await around.submit(ready=True)) == "done"

    run(test)


def test_a_filler_that_is_killed_in_mid_job_costs_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with situation(tmp_path, with_image()) as around:
            fills = around.fills
            fills.put(CONFIG)
            job = await around.submit(ready=True)
            await bring_config(around)
            await until(lambda: len(wanted_layers(around)) == 2)
            fills.enter(TWO, "mountable")
            await fills.stop()
            fills.layer(TWO).state = "planning"
            await fills.start()
            await until(lambda: len(wanted_layers(around)) == 2)
            for digest in (ONE, TWO):
                fills.enter(digest, "complete")
            assert await until_ended(job) == "done"

    run(test)


def test_the_next_process_goes_on_to_make_the_image_ready(tmp_path: Path) -> None:
    async def test() -> None:
        manifests = with_image()
        async with situation(tmp_path, manifests) as around:
            around.fills.put(CONFIG)
            job = await around.submit(ready=True)
            await bring_config(around)
            await until(lambda: len(wanted_layers(around)) == 2)
        async with situation(tmp_path, manifests) as around:
            around.fills.put(CONFIG)
            around.fills.finish(Digest.of(CONFIG))
            around.fills.layer(ONE).state = "complete"
            again = await around.jobs.get(job.id)
            assert again.request.ready
            assert await around.submit(ready=True) is again
            await until(lambda: len(wanted_layers(around)) == 1)
            around.fills.enter(TWO, "complete")
            assert await until_ended(again) == "done"
            shown = again.describe()
        async with situation(tmp_path, manifests) as around:
            assert (await around.jobs.get(job.id)).describe() == shown
            assert shown["ready"] is True

    run(test)
