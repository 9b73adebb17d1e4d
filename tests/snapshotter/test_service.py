"""The service over a real socket, as an ordinary overlayfs snapshotter."""

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from grpc import StatusCode

from mount.snapshotter.snapshot import Mount, Usage
from tests.parts.processes import run as run_command
from tests.snapshotter.serving import SnapshotsClient, failing, run_served

Run = Callable[[Callable[[SnapshotsClient], Awaitable[None]]], None]


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Run:
    """Run a scenario against a snapshotter that knows no layers."""

    def run(scenario: Callable[[SnapshotsClient], Awaitable[None]]) -> None:
        run_served(root, tmp_path / "layers", scenario)

    return run


def upper(mounts: list[Mount]) -> Path:
    """The directory that is written to."""
    (mount,) = mounts
    if mount.type == "bind":
        return Path(mount.source)
    return Path(next(o for o in mount.options if o.startswith("upperdir=")).partition("=")[2])


def lower(mounts: list[Mount]) -> list[str]:
    """The directories below, the top one first."""
    (mount,) = mounts
    return next(o for o in mount.options if o.startswith("lowerdir=")).partition("=")[2].split(":")


@contextmanager
def mounted(mounts: list[Mount], target: Path) -> Iterator[Path]:
    """The snapshot as a container sees it."""
    target.mkdir()
    for mount in mounts:
        options = ",".join(mount.options)
        run_command(["mount", "-t", mount.type, "-o", options, mount.source, target])
    try:
        yield target
    finally:
        run_command(["umount", target])


async def committed(client: SnapshotsClient, *names: str) -> list[Path]:
    """A chain of committed snapshots; their directories."""
    directories = []
    parent = ""
    for name in names:
        directories.append(upper(await client.prepare(f"extract {name}", parent)))
        await client.commit(name, f"extract {name}")
        parent = name
    return directories


def test_a_layer_is_unpacked_and_a_container_runs_on_it(run: Run, root: Path) -> None:
    async def scenario(client: SnapshotsClient) -> None:
        base, top = await committed(client, "base", "top")
        (base / "file").write_text("from the base")
        (top / "other").write_text("from the top")
        mounts = await client.prepare("container", "top")
        assert await client.mounts("container") == mounts
        assert mounts[0].type == "overlay" and mounts[0].options[0] == "index=off"
        assert lower(mounts) == [str(top), str(base)]
        assert upper(mounts).parent == Path(mounts[0].options[1].partition("=")[2]).parent
        with mounted(mounts, root / "merged") as merged:
            assert (merged / "file").read_text() == "from the base"
            assert (merged / "other").read_text() == "from the top"
            (merged / "file").write_text("changed")
        assert (upper(mounts) / "file").read_text() == "changed"
        assert (base / "file").read_text() == "from the base"

    run(scenario)


def test_the_root_directory_has_its_parents_owner_and_an_open_mode(run: Run) -> None:
    async def scenario(client: SnapshotsClient) -> None:
        (base,) = await committed(client, "base")
        os.chown(base, 1234, 5678)
        found = upper(await client.prepare("container", "base")).stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (1234, 5678, 0o755)

    mask = os.umask(0o077)
    try:
        run(scenario)
    finally:
        os.umask(mask)


def test_views_are_read_only(run: Run) -> None:
    async def scenario(client: SnapshotsClient) -> None:
        base, top = await committed(client, "base", "top")
        (nothing,) = await client.view("of nothing")
        assert nothing.options == ("ro", "rbind") and os.listdir(nothing.source) == []
        assert await client.view("of base", "base") == [Mount("bind", str(base), ("ro", "rbind"))]
        (overlay,) = await client.view("of top", "top")
        assert overlay.options == ("index=off", f"lowerdir={top}:{base}")
        assert (await client.stat("of top")).kind == 1
        async with failing(StatusCode.FAILED_PRECONDITION, "view, not active"):
            await client.commit("x", "of top")

    run(scenario)


def test_a_commit_renames_and_takes_the_labels_of_the_commit(run: Run) -> None:
    async def scenario(client: SnapshotsClient) -> None:
        await client.prepare("key", labels={"old": "1"})
        before = await client.stat("key")
        assert before.kind == 2 and dict(before.labels) == {"old": "1"}
        assert before.created_at == before.updated_at and before.created_at.seconds > 0
        await client.commit("name", "key", {"new": "2", "empty": ""})
        async with failing(StatusCode.NOT_FOUND, "'key'"):
            await client.stat("key")
        after = await client.stat("name")
        assert after.kind == 3 and dict(after.labels) == {"new": "2"}

    run(scenario)


def test_what_cannot_be_is_refused_by_its_own_status(run: Run) -> None:
    async def scenario(client: SnapshotsClient) -> None:
        await committed(client, "base")
        await client.prepare("active", "base")
        async with failing(StatusCode.ALREADY_EXISTS, "'active'"):
            await client.prepare("active", "base")
        async with failing(StatusCode.NOT_FOUND, "'nobody'"):
            await client.prepare("other", "nobody")
        async with failing(StatusCode.INVALID_ARGUMENT, "active, not committed"):
            await client.prepare("other", "active")
        async with failing(StatusCode.INVALID_ARGUMENT, "a name"):
            await client.prepare("")
        async with failing(StatusCode.ALREADY_EXISTS, "'base'"):
            await client.commit("base", "active")
        async with failing(StatusCode.NOT_FOUND):
            await client.commit("name", "nobody")
        async with failing(StatusCode.FAILED_PRECONDITION, "committed, not active"):
            await client.commit("name", "base")
        async with failing(StatusCode.FAILED_PRECONDITION, "no mounts"):
            await client.mounts("base")
        async with failing(StatusCode.FAILED_PRECONDITION, "children"):
            await client.remove("base")
        for call in (client.mounts, client.remove, client.stat, client.usage):
            async with failing(StatusCode.NOT_FOUND, "'nobody'"):
                await call("nobody")
        async with failing(StatusCode.NOT_FOUND, "'nobody'"):
            await client.update("nobody", {})
        async with failing(StatusCode.INVALID_ARGUMENT, "expected"):
            await client.list("labels.")
        assert await client.names() == {"base", "active"}

    run(scenario)


def test_labels_are_updated_as_the_mask_says(run: Run) -> None:
    async def scenario(client: SnapshotsClient) -> None:
        await client.prepare("key", labels={"a": "1", "b": "2"})
        changed = await client.update("key", {"a": "x", "c": "y"}, "labels.a", "labels.b")
        assert dict(changed.labels) == {"a": "x"}
        assert (changed.updated_at.seconds, changed.updated_at.nanos) > (
            changed.created_at.seconds,
            changed.created_at.nanos,
        )
        assert dict((await client.update("key", {"c": "y"})).labels) == {"c": "y"}
        assert dict((await client.update("key", {"d": "z"}, "labels")).labels) == {"d": "z"}
        async with failing(StatusCode.INVALID_ARGUMENT, "'parent'"):
            await client.update("key", {}, "parent")
        assert dict((await client.stat("key")).labels) == {"d": "z"}

    run(scenario)


def test_snapshots_are_listed_by_filters_in_any_number(run: Run) -> None:
    async def scenario(client: SnapshotsClient) -> None:
        for number in range(230):
            await client.prepare(f"key {number}", labels={"even": "yes"} if number % 2 else {})
        assert await client.names() == {f"key {number}" for number in range(230)}
        assert len(await client.list("labels.even")) == 115
        assert await client.names('name=="key 7"', 'name=="key 8",labels.even') == {"key 7"}
        assert await client.names("kind==committed") == set()

    run(scenario)


def test_usage_counts_blocks_and_inodes_once(run: Run) -> None:
    async def scenario(client: SnapshotsClient) -> None:
        own = upper(await client.prepare("key"))
        empty = await client.usage("key")
        assert empty.inodes == 1
        (own / "directory").mkdir()
        file = own / "directory" / "file"
        file.write_bytes(b"x" * 100_000)
        (own / "link").hardlink_to(file)
        (own / "symlink").symlink_to("/usr")
        used = sum(
            path.lstat().st_blocks * 512 for path in (own, own / "directory", file, own / "symlink")
        )
        assert await client.usage("key") == Usage(used, 4)
        await client.commit("name", "key")
        assert await client.usage("name") == Usage(used, 4)
        file.unlink()
        assert await client.usage("name") == Usage(used, 4)

    run(scenario)


def test_removed_directories_go_with_the_cleanup_and_no_others(run: Run, root: Path) -> None:
    async def scenario(client: SnapshotsClient) -> None:
        (base,) = await committed(client, "base")
        gone = upper(await client.prepare("container", "base"))
        (gone / "deep" / "er").mkdir(parents=True)
        stray = root / "snapshots" / "99"
        (stray / "fs").mkdir(parents=True)
        await client.remove("container")
        assert gone.is_dir()
        await client.cleanup()
        assert sorted(os.listdir(root / "snapshots")) == [base.parent.name]

    run(scenario)


def test_a_number_is_never_given_out_again(run: Run) -> None:
    async def scenario(client: SnapshotsClient) -> None:
        first = upper(await client.prepare("key"))
        await client.remove("key")
        assert upper(await client.prepare("key")) != first

    run(scenario)


def test_a_snapshot_whose_files_are_gone_is_not_mounted(run: Run) -> None:
    async def scenario(client: SnapshotsClient) -> None:
        base, _ = await committed(client, "base", "top")
        await client.prepare("container", "top")
        base.rmdir()
        async with failing(StatusCode.FAILED_PRECONDITION, "'base' are gone; remove its image"):
            await client.mounts("container")
        async with failing(StatusCode.FAILED_PRECONDITION, "'base' are gone"):
            await client.prepare("another", "top")
        assert "another" not in await client.names()

    run(scenario)


def test_a_directory_that_a_crash_has_left_is_in_nobodys_way(run: Run, root: Path) -> None:
    async def scenario(client: SnapshotsClient) -> None:
        left = root / "snapshots" / "1" / "fs"
        left.mkdir(parents=True)
        (left / "file").touch()
        made = upper(await client.prepare("key"))
        assert made == left and os.listdir(made) == []
        await client.cleanup()
        assert os.listdir(root / "snapshots") == ["1"]

    run(scenario)
