"""Faults 27, 33 to 36a and 55: full and damaged disks, a lost index, eviction, foreign caches."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from diskcache import Cache, JSONDisk

from headstart.content.digest import Digest
from headstart.store.fill_client import FillClient
from headstart.store.layout import FORMAT_VERSION, STAMP, STAND_INS, Layout
from tests.doubles.scripted_upstream import ScriptedUpstream
from tests.faults.injecting import failing_calls, small_disk
from tests.faults.setting import MIB, PATIENT, REPOSITORY, Setting, running_setting
from tests.faults.streaming import Cold
from tests.faults.watching import (
    FILLER,
    MIRROR,
    blobs_closed,
    eventually,
    files_of,
    listed,
    with_filler,
)
from tests.parts.mirror import Mirror, upstream_at
from tests.parts.processes import Process

SMALL_EXTENTS = {"extent_size": "1MiB"}


# --- 27: no room ---


@pytest.fixture(scope="module")
def scarce(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """A mirror that may keep 16 MiB."""
    cache = {"max_size": "16MiB", **SMALL_EXTENTS}
    with running_setting(
        tmp_path_factory.mktemp("scarce"), fresh=8, fetch=PATIENT, settings={"cache": cache}
    ) as running:
        yield running


def test_f27_a_blob_larger_than_the_quota_passes_through(scarce: Setting) -> None:
    blob = Cold(scarce, 40 * MIB)
    assert all(client.finish().right() for client in blob.clients(3))
    assert blob.client(f"{30 * MIB + 5}-").finish().right()
    assert blob.client(f"{30 * MIB + 5}-{31 * MIB}").finish().right()
    figures = scarce.mirror.ask("/cache")
    assert sum(entry["allocated"] for entry in figures["objects"]) <= 16 * MIB
    small = Cold(scarce, 3 * MIB)
    small.pull()
    small.pull_from_cache()


def test_f27_a_full_disk_passes_through_and_room_is_used_without_a_restart(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", 24) as disk,
        running_setting(
            tmp_path / "mirror",
            fresh=4,
            fetch=PATIENT,
            stripes=[disk.path],
            settings={"cache": {"max_size": "1GiB", **SMALL_EXTENTS}},
        ) as setting,
    ):
        large, other, last = (
            Cold(setting, 40 * MIB),
            Cold(setting, 12 * MIB),
            Cold(setting, 12 * MIB),
        )
        assert all(client.finish().right() for client in large.clients(3))
        # What is of no use any more makes room: first the rest of the large one, then the other.
        for blob in (other, last):
            blob.pull()
            blob.pull_from_cache()
        assert other.digest not in listed(setting.mirror)
        ballast = disk.path / "ballast"
        ballast.write_bytes(bytes(disk.free() // 4096 * 4096))
        setting.mirror.ask(f"/cache/{last.digest}/pin", "PUT")
        with ballast.open("ab") as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(64 * 1024))
                file.flush()
        small = Cold(setting, 2 * MIB)
        small.pull()
        small.pull()
        assert len(small.upstream.blob_requests()) > 2, "there was no room to keep it"
        ballast.unlink()
        small.pull()
        small.pull_from_cache()


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """A mirror with small extents."""
    directory = tmp_path_factory.mktemp("roomy")
    with running_setting(
        directory, fresh=24, fetch=PATIENT, settings={"cache": SMALL_EXTENTS}
    ) as running:
        yield running


@pytest.mark.parametrize(
    ("calls", "first"),
    [
        ("ftruncate", 1),
        ("fallocate", 1),
        ("fallocate", 2),
        ("pwrite64", 1),
        ("pwrite64", 2),
        ("pwrite64", 3),
        ("?rename,?renameat,?renameat2", 1),
        ("fsync", 1),
    ],
)
def test_f27_no_space_at_any_write_ends_no_pull(
    roomy: Setting, tmp_path: Path, calls: str, first: int
) -> None:
    blob, kept = Cold(roomy, 6 * MIB), Cold(roomy, 2 * MIB)
    kept.pull()
    roomy.mirror.ask(f"/cache/{kept.digest}/pin", "PUT")
    filler = roomy.mirror.process_id(FILLER)
    with failing_calls(filler, calls, "ENOSPC", tmp_path / "strace.log", first=first):
        assert all(client.finish().right() for client in blob.clients(2))
        assert blob.client("100000-").finish().right()
        assert blob.client("100000-299999").finish().right()
        kept.pull_from_cache()
    assert roomy.mirror.process_id(FILLER) == filler
    blob.pull()
    blob.pull_from_cache()


def test_f27_eviction_that_gains_nothing_is_not_repeated(tmp_path: Path) -> None:
    with running_setting(
        tmp_path / "mirror", fresh=9, fetch=PATIENT, settings={"cache": SMALL_EXTENTS}
    ) as setting:
        cached = [Cold(setting, MIB) for _ in range(8)]
        for blob in cached:
            blob.pull()
        blob = Cold(setting, 6 * MIB)
        filler = setting.mirror.process_id(FILLER)
        with failing_calls(filler, "fallocate", "ENOSPC", tmp_path / "strace.log"):
            blob.pull()
            blob.pull()
        assert len(listed(setting.mirror).keys() & {one.digest for one in cached}) >= 8 - 1
        blob.pull()
        blob.pull_from_cache()


def test_f27_what_cannot_fit_drives_nothing_out(scarce: Setting) -> None:
    small, large = Cold(scarce, 2 * MIB), Cold(scarce, 40 * MIB)
    small.pull()
    large.pull()
    small.pull_from_cache()


# --- 33: files changed behind our back ---


def _flip(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(100_000)
        byte = opened.read(1)[0]
        opened.seek(100_000)
        opened.write(bytes([byte ^ 1]))


def _truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _empty(file: Path) -> None:
    os.truncate(file, 0)


def _extend(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"more")


def _zero(file: Path) -> None:
    size = file.stat().st_size
    file.unlink()
    with file.open("wb") as opened:
        opened.truncate(size)


def _map(file: Path) -> Path:
    return file.with_name(file.name + ".map")


def _garble_map(file: Path) -> None:
    size = _map(file).stat().st_size
    _map(file).write_bytes(random.Random(33).randbytes(size))


def _delete_map(file: Path) -> None:
    _map(file).unlink()


def _cut_map(file: Path) -> None:
    os.truncate(_map(file), 100)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a flipped bit": _flip,
    "truncated": _truncate,
    "emptied": _empty,
    "extended": _extend,
    "deleted": Path.unlink,
    "replaced by zeros": _zero,
    "its map deleted": _delete_map,
    "its map garbled": _garble_map,
    "its map cut": _cut_map,
}


class Aged:
    """A mirror of two stripes with one cached blob for each damage, all closed again."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.blobs = {name: Cold(setting, 4 * MIB) for name in [*DAMAGES, "a lost stripe"]}
        for blob in self.blobs.values():
            blob.pull()
        blobs_closed(setting.mirror)


@pytest.fixture(scope="module")
def aged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aged]:
    directory = tmp_path_factory.mktemp("aged")
    stripes = [directory / "one", directory / "two"]
    with running_setting(
        directory, fresh=16, fetch=PATIENT, stripes=stripes, settings={"cache": SMALL_EXTENTS}
    ) as setting:
        yield Aged(setting)


@pytest.mark.parametrize("damage", DAMAGES)
def test_f33_a_file_changed_while_nobody_has_it_open(aged: Aged, damage: str) -> None:
    blob = aged.blobs[damage]
    blob.upstream.forget_requests()
    DAMAGES[damage](files_of(aged.setting.mirror, blob.digest)[1])
    assert blob.client(f"{MIB}-{2 * MIB - 1}").finish().right(), "the extent that is damaged"
    blob.pull()
    if damage != "extended":
        assert blob.upstream.blob_requests(), "what was lost is fetched again"
    assert blob.upstream.blob_bytes_sent() <= 2 * MIB, "what was not is kept"
    blob.pull_from_cache()


@pytest.mark.parametrize("damage", ["a flipped bit", "truncated", "deleted", "extended"])
def test_f33_a_file_changed_while_it_is_open(roomy: Setting, damage: str) -> None:
    blob = Cold(roomy, 4 * MIB)
    blob.pull()
    DAMAGES[damage](files_of(roomy.mirror, blob.digest)[0])
    blob.client().finish().right()
    blob.pull()
    blob.pull_from_cache()


def test_f33_files_changed_while_the_mirror_is_down(tmp_path: Path) -> None:
    with running_setting(
        tmp_path, fresh=16, fetch=PATIENT, settings={"cache": SMALL_EXTENTS}
    ) as setting:
        blobs = {name: Cold(setting, 2 * MIB) for name in DAMAGES}
        for blob in blobs.values():
            blob.pull()
        setting.mirror.stop()
        for name, blob in blobs.items():
            DAMAGES[name](files_of(setting.mirror, blob.digest)[0])
        setting.mirror.start()
        for blob in blobs.values():
            blob.pull()
            blob.pull_from_cache()


# --- 34: the index ---


def _delete_index(index: Path) -> None:
    shutil.rmtree(index)


def _garble_index(index: Path) -> None:
    for file in index.rglob("*"):
        if file.is_file():
            file.write_bytes(random.Random(34).randbytes(file.stat().st_size + 1))


def _older_index(index: Path) -> None:
    with Cache(str(index), disk=JSONDisk) as cache:
        cache.set("index-version", 0)


def test_f34_a_lost_index_is_rebuilt_from_the_files(tmp_path: Path) -> None:
    cache = {"max_size": "8MiB", **SMALL_EXTENTS}
    with running_setting(tmp_path, fresh=4, fetch=PATIENT, settings={"cache": cache}) as setting:
        blobs = [Cold(setting, 3 * MIB), Cold(setting, 3 * MIB)]
        for blob in blobs:
            blob.pull()
        before = {blob.digest for blob in blobs}

        def entered() -> bool:
            return set(listed(setting.mirror)) == before

        for damage in (_delete_index, _garble_index, _older_index):
            setting.mirror.stop()
            damage(setting.mirror.stripes[0] / "index")
            setting.mirror.start()
            eventually(entered, 10, "the files are in the account")
            assert all(entry["verified"] for entry in listed(setting.mirror).values())
            for blob in blobs:
                blob.pull_from_cache()


# --- 35: eviction ---


def test_f35_an_open_read_of_an_evicted_blob_finishes(roomy: Setting) -> None:
    blob = Cold(roomy, 16 * MIB)
    blob.pull()
    reader = blob.client(receive_buffer=64 * 1024).reach(1)
    reader.hold()
    roomy.mirror.ask(f"/cache/{blob.digest}", "DELETE")
    assert not any(file.exists() for file in files_of(roomy.mirror, blob.digest))
    assert blob.digest not in listed(roomy.mirror)
    blob.upstream.forget_requests()
    blob.pull()
    assert blob.upstream.blob_bytes_sent() == len(blob.content), "it was fetched anew"
    assert reader.running
    assert reader.finish().right()
    blob.pull_from_cache()


def test_f35_a_blob_evicted_for_room_is_read_to_its_end(scarce: Setting) -> None:
    # Larger than what sockets hold, or the reader would have it all before the eviction.
    blob = Cold(scarce, 12 * MIB)
    blob.pull()
    reader = blob.client(receive_buffer=64 * 1024).reach(1)
    reader.hold()
    newer = Cold(scarce, 10 * MIB)
    newer.pull()
    newer.pull_from_cache()
    assert blob.digest not in listed(scarce.mirror)
    assert reader.running
    assert reader.finish().right()


def test_f35_a_blob_of_two_repositories_survives_the_end_of_one(roomy: Setting) -> None:
    blob = Cold(roomy, 2 * MIB)
    assert blob.upstream.add_blob("team/other", blob.content) == blob.digest
    blob.pull()
    blob.upstream.remove_blob(REPOSITORY, blob.digest)
    before = len(blob.upstream.requests)
    assert blob.client(repository="team/other").finish().right()

    async def open_other(filler: FillClient) -> bool:
        opened = await filler.open(
            upstream=blob.upstream.host,
            repository="team/other",
            digest=Digest.parse(blob.digest),
        )
        return opened.blob.verified

    assert with_filler(roomy.mirror, open_other)
    assert len(blob.upstream.requests) == before, "its upstream vouches for it already"


# --- 36a: one stripe ---


def test_f36a_a_full_stripe_costs_its_own_extents_only(tmp_path: Path) -> None:
    with small_disk(tmp_path / "two", 6) as disk:
        stripes = [tmp_path / "one", disk.path]
        with running_setting(
            tmp_path / "mirror",
            fresh=2,
            fetch=PATIENT,
            stripes=stripes,
            settings={"cache": SMALL_EXTENTS},
        ) as setting:
            blob = Cold(setting, 24 * MIB)
            assert all(client.finish().right() for client in blob.clients(2))
            blob.upstream.forget_requests()
            assert blob.client(f"0-{MIB - 1}").finish().right()
            assert not blob.upstream.blob_requests(), "the first extent lies on the other stripe"
            last = f"{23 * MIB}-{24 * MIB - 1}"
            assert blob.client(last).finish().right()
            assert blob.upstream.blob_requests(), "the last one has no room"
            disk.grow(64)
            blob.pull()
            blob.pull_from_cache()


def test_f36a_the_extents_of_a_lost_stripe_are_misses(aged: Aged) -> None:
    blob, stripe = aged.blobs["a lost stripe"], aged.setting.mirror.stripes[1]
    blob.upstream.forget_requests()
    away = stripe.rename(stripe.with_name("away"))
    stripe.write_text("no directory")
    try:
        for extent in (0, 2):
            assert blob.client(f"{extent * MIB}-{(extent + 1) * MIB - 1}").finish().right()
        assert not blob.upstream.blob_requests(), "the extents of the other stripe are there"
        assert blob.client(f"{MIB}-{2 * MIB - 1}").finish().right()
        assert blob.client().finish().right()
        assert blob.client(f"{2 * MIB + 7}-").finish().right()
        fresh = Cold(aged.setting, 3 * MIB)
        fresh.pull()
        fresh.pull()
    finally:
        stripe.unlink()
        away.rename(stripe)
    after = Cold(aged.setting, 3 * MIB)
    after.pull()
    after.pull_from_cache()


def test_f36a_extents_that_cannot_be_read_are_misses(tmp_path: Path) -> None:
    stripes = [tmp_path / "one", tmp_path / "two"]
    with ExitStack() as stack:
        setting = stack.enter_context(
            running_setting(
                tmp_path / "mirror",
                fresh=1,
                fetch=PATIENT,
                stripes=stripes,
                settings={"cache": SMALL_EXTENTS},
            )
        )
        blob = Cold(setting, 6 * MIB)
        blob.pull()
        file = files_of(setting.mirror, blob.digest)[1]
        for name in (FILLER, MIRROR):
            pid, log = setting.mirror.process_id(name), tmp_path / f"{name}.log"
            calls = "sendfile,pread64,preadv,preadv2,pwrite64"
            stack.enter_context(failing_calls(pid, calls, "EIO", log, file=file))
        if not blob.client().finish().right():
            blob.pull()
        before = blob.upstream.blob_bytes_sent()
        for extent in (0, 2, 4):
            assert blob.client(f"{extent * MIB}-{(extent + 1) * MIB - 1}").finish().right()
        assert blob.upstream.blob_bytes_sent() == before, "the other stripe's extents are there"
        assert blob.client(f"{MIB}-{2 * MIB - 1}").finish().right()
        assert blob.client(f"{3 * MIB + 5}-").finish().right()


def test_f36a_an_unmounted_stripe_is_not_replaced_by_the_directory_below(tmp_path: Path) -> None:
    with small_disk(tmp_path / "two", 64) as disk:
        stripes = [tmp_path / "one", disk.path]
        with running_setting(
            tmp_path / "mirror",
            fresh=2,
            fetch=PATIENT,
            stripes=stripes,
            settings={"cache": SMALL_EXTENTS},
        ) as setting:
            Cold(setting, 3 * MIB).pull()
            disk.detach()
            blob = Cold(setting, 4 * MIB)
            blob.pull()
            blob.pull()
            assert not list(disk.path.iterdir()), "the disk that is mounted over would be filled"
            stand_ins = stripes[0] / STAND_INS
            assert list(stand_ins.iterdir())
            blobs_closed(setting.mirror)
            assert not list(stand_ins.iterdir()), "what stands in for files is removed"


# --- 55: not ours ---


class Refused:
    """A start of a mirror that is refused: what it said, and its exit status."""

    def __init__(self, mirror: Mirror) -> None:
        log = mirror.directory / "refused.log"
        log.unlink(missing_ok=True)
        process = Process(mirror.arguments(), log)
        try:
            eventually(lambda: process.exit_status() is not None, 60, "it gives up")
            self.status = process.exit_status()
            said = log.read_text()
        finally:
            process.stop()
        assert "Traceback" not in said
        self.lines = [
            line
            for line in said.splitlines()
            if line.startswith(("headstart: cache.", "headstart: control.", "headstart: /"))
        ]


@pytest.fixture
def upstream(parts: ExitStack) -> ScriptedUpstream:
    return parts.enter_context(ScriptedUpstream())


def test_f55_a_second_daemon_on_the_same_directory(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    hosts = {upstream.host: upstream_at(upstream.url)}
    digest = upstream.add_blob(REPOSITORY, b"x" * MIB)
    with Mirror(tmp_path, hosts) as first:
        # Its control socket elsewhere, or that would be in its way before the cache's lock is.
        control = {"control": {"socket": str(tmp_path / "second.sock")}}
        second = Mirror(tmp_path / "second", hosts, stripes=first.stripes, settings=control)
        third = Mirror(tmp_path / "third", hosts, stripes=first.stripes)
        with ThreadPoolExecutor(2) as starts:
            refused, another = starts.map(Refused, (second, third))
        assert refused.status == 2
        holder = first.process_id(FILLER)
        assert refused.lines == [
            f"headstart: cache.stripes: {first.stripes[0]} is in use by process {holder}; "
            "stop it or give this one its own directory"
        ]
        assert another.status == 2
        assert len(another.lines) == 1
        assert "stop it" in another.lines[0]
        setting = Setting(first, [])
        assert setting.blob(upstream.host, digest).complete
        assert digest in listed(first)
        assert (first.stripes[0] / "run" / "control.sock").is_socket()


def test_f55_a_cache_of_another_version(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    mirror = Mirror(tmp_path, {upstream.host: upstream_at(upstream.url)})
    Layout(mirror.stripes).prepare()
    stamp = mirror.stripes[0] / STAMP
    stamped = json.loads(stamp.read_text())
    for version in (FORMAT_VERSION - 1, FORMAT_VERSION + 1):
        stamp.write_text(json.dumps({**stamped, "format": version}))
        refused = Refused(mirror)
        assert refused.status == 2
        assert refused.lines == [
            f"headstart: {stamp}: format version {version}, this program writes {FORMAT_VERSION}; "
            "run `headstart scrub --upgrade` or use an empty directory"
        ]


def test_f55_a_stripe_of_another_cache(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    hosts = {upstream.host: upstream_at(upstream.url)}
    one, other = tmp_path / "one", tmp_path / "other"
    for stripe in (one, other):
        Layout((stripe,)).prepare()
    refused = Refused(Mirror(tmp_path / "mixed", hosts, stripes=(one, other)))
    assert refused.status == 2
    assert len(refused.lines) == 1
    assert "belong to different caches; list the directories of one cache" in refused.lines[0]
    refused = Refused(Mirror(tmp_path / "swapped", hosts, stripes=(tmp_path / "new", one)))
    assert refused.status == 2
    assert len(refused.lines) == 1
    assert "list cache.stripes in their old order" in refused.lines[0]
