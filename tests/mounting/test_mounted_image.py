"""Images mounted for a person: layers on each other, changes, and everything gone at the end."""

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from headstart.content.digest import Digest
from headstart.content.reference import ImageReference
from headstart.store.errors import FillFailed
from headstart.store.fill_client import FillClient
from mount.image.errors import DirectoryUnusable
from mount.image.mounted_image import ImageMounts, Wanted
from mount.image.records import ImageRecord
from mount.image.resolve import ResolvedImage
from mount.mounting import system_calls
from mount.mounting.mount_table import mounted_at, mounted_below
from tests.mounting.layer_stage import NAMES, PATIENCE_SECONDS, Stage
from tests.mounting.machine import assert_descriptors, loop_devices, open_descriptors

Scenario = Callable[["Person", ImageMounts], Awaitable[None]]


class Person(Stage):
    """Somebody who mounts the image at ``at``."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.at = root / "at"
        self.at.mkdir()
        self.complete()

    @property
    def image(self) -> ResolvedImage:
        return ResolvedImage(
            ImageReference.parse("registry.test/team/app:1"),
            Digest.of(b"manifest"),
            self.filler.chain.layers,
        )

    def do(self, scenario: Scenario) -> None:
        """Run a scenario; descriptors are at the baseline afterwards."""

        async def run() -> None:
            async with (
                asyncio.timeout(PATIENCE_SECONDS),
                self.filler,
                FillClient(self.filler.path, "command") as client,
            ):
                await scenario(self, ImageMounts(self.root, self.mounts(), client))

        before, devices = open_descriptors(), loop_devices()
        asyncio.run(run())
        assert_descriptors(before)
        assert loop_devices() == devices

    def assert_nothing_left(self) -> None:
        assert not mounted_at(self.at)
        assert not list(mounted_below(self.root / "layers"))
        assert not list((self.root / "layers").iterdir())
        assert not list((self.root / "mounts").iterdir())
        assert self.filler.leases == set()


@pytest.fixture
def person(root: Path) -> Person:
    return Person(root)


def test_an_image_shows_all_its_layers(person: Person) -> None:
    async def scenario(person: Person, images: ImageMounts) -> None:
        async with images.mounted(person.image, Wanted(person.at)) as record:
            assert sorted(os.listdir(person.at)) == sorted(NAMES)
            assert all((person.at / name).read_text() == name for name in NAMES)
            with pytest.raises(OSError, match="Read-only"):
                (person.at / "new").touch()
            assert record.mounted() and images.records.attended(record)
            assert images.records.at(person.at) == record
            assert record.as_json()["image"] == "registry.test/team/app:1"
            assert len(person.filler.leases) == 3
            assert {"nosuid", "nodev"} <= set(mounted_at(person.at)[-1].options)
        assert not record.mounted()

    person.do(scenario)
    person.assert_nothing_left()


def test_an_image_of_one_layer_needs_no_overlay(person: Person) -> None:
    del person.filler.layers[1:]

    async def scenario(person: Person, images: ImageMounts) -> None:
        async with images.mounted(person.image, Wanted(person.at)) as record:
            assert mounted_at(person.at)[-1].kind == "erofs"
            assert os.listdir(person.at) == ["base"]
            assert images.records.at(person.at) == record

    person.do(scenario)
    person.assert_nothing_left()


def test_an_image_may_have_a_layer_twice(person: Person) -> None:
    async def scenario(person: Person, images: ImageMounts) -> None:
        base, middle, top = person.image.layers
        image = replace(person.image, layers=(base, middle, base, top, middle))
        async with images.mounted(image, Wanted(person.at)):
            assert sorted(os.listdir(person.at)) == sorted(NAMES)

    person.do(scenario)
    person.assert_nothing_left()


def test_changes_are_lost_at_the_end(person: Person) -> None:
    async def scenario(person: Person, images: ImageMounts) -> None:
        async with images.mounted(person.image, Wanted(person.at, writable=True)):
            assert stat.S_IMODE(person.at.stat().st_mode) == 0o755
            (person.at / "new").write_text("new")
            (person.at / "base").write_text("changed")
            (person.at / "top").unlink()
            assert sorted(os.listdir(person.at)) == ["base", "middle", "new"]
        async with images.mounted(person.image, Wanted(person.at)):
            assert (person.at / "base").read_text() == "base"
            assert not (person.at / "new").exists()

    person.do(scenario)
    person.assert_nothing_left()


def test_two_images_share_their_layers(person: Person) -> None:
    async def scenario(person: Person, images: ImageMounts) -> None:
        other = person.root / "other"
        other.mkdir()
        async with images.mounted(person.image, Wanted(other)):
            async with images.mounted(person.image, Wanted(person.at)):
                assert len(list(mounted_below(person.root / "layers"))) == 3
            assert (other / "top").read_text() == "top"
            assert len(person.filler.leases) == 3
            assert len(list(mounted_below(person.root / "layers"))) == 3

    person.do(scenario)
    person.assert_nothing_left()


def test_it_ends_when_somebody_unmounts_it(person: Person) -> None:
    async def scenario(person: Person, images: ImageMounts) -> None:
        async with images.mounted(person.image, Wanted(person.at)) as record:
            waiting = asyncio.create_task(images.until_unmounted(record))
            await asyncio.sleep(0.01)
            assert not waiting.done()
            system_calls.unmount(person.at)
            await waiting

    person.do(scenario)
    person.assert_nothing_left()


def test_what_is_in_use_goes_with_its_last_user(person: Person) -> None:
    async def scenario(person: Person, images: ImageMounts) -> None:
        async with images.mounted(person.image, Wanted(person.at)):
            file = (person.at / "top").open()
        with file:
            assert file.read() == "top"

    person.do(scenario)
    person.assert_nothing_left()


def test_another_mount_on_top_is_left_alone(person: Person) -> None:
    async def scenario(person: Person, images: ImageMounts) -> None:
        async with images.mounted(person.image, Wanted(person.at)):
            system_calls.mount("none", person.at, "tmpfs", 0)
        assert [point.kind for point in mounted_at(person.at)] == ["overlay", "tmpfs"]

    person.do(scenario)


def test_a_layer_that_fails_leaves_nothing_behind(person: Person) -> None:
    person.filler.layers[1].refusal = FillFailed("refused", "its tar is damaged")

    async def scenario(person: Person, images: ImageMounts) -> None:
        with pytest.raises(FillFailed, match="its tar is damaged"):
            async with images.mounted(person.image, Wanted(person.at)):
                raise AssertionError("it was mounted")

    person.do(scenario)
    person.assert_nothing_left()


def test_who_stops_waiting_leaves_nothing_behind(person: Person) -> None:
    person.top.state = "streaming"

    async def scenario(person: Person, images: ImageMounts) -> None:
        async def mount() -> None:
            async with images.mounted(person.image, Wanted(person.at)):
                raise AssertionError("it was mounted")

        task = asyncio.create_task(mount())
        await person.filler.until("lease", 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    person.do(scenario)
    person.assert_nothing_left()


def test_a_directory_that_is_none_is_named(person: Person) -> None:
    async def scenario(person: Person, images: ImageMounts) -> None:
        with pytest.raises(DirectoryUnusable, match=r"missing: mount\(.*No such file"):
            async with images.mounted(person.image, Wanted(person.root / "missing")):
                raise AssertionError("it was mounted")

    person.do(scenario)
    person.assert_nothing_left()


def test_who_was_killed_is_cleaned_up_after(person: Person) -> None:
    async def scenario(person: Person, images: ImageMounts) -> None:
        image = person.top.image
        mounted = person.mounts().mount(image, "mount-1234")
        system_calls.mount(mounted.path, person.at, "none", system_calls.MS_BIND)
        device = mounted_at(person.at)[-1].device
        record = ImageRecord("1234", person.at, "name", False, device, (image.layer,))
        # The lock is all that goes with a process.
        with images.records.kept(record):
            assert images.records.attended(record)
        assert not images.records.attended(record)
        await images.clean_up_abandoned()
        assert images.records.all() == [record] and record.mounted()
        system_calls.unmount(person.at)
        await images.clean_up_abandoned()

    person.do(scenario)
    person.assert_nothing_left()


def test_a_damaged_record_is_no_image(person: Person) -> None:
    async def scenario(person: Person, images: ImageMounts) -> None:
        for number, content in enumerate(("", "{", "[]", '{"version": 1}', '{"version": 2}')):
            (person.root / "mounts" / f"{number}.json").write_text(content)
        assert images.records.all() == []
        await images.clean_up_abandoned()

    person.do(scenario)
