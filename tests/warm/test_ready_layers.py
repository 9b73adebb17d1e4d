"""Images made ready by the real mirror and filler: what is there afterwards, and after kills."""

import io
import os
import signal
import tarfile
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from headstart.content.digest import Digest
from tests.doubles.scripted_upstream import Rule
from tests.faults.reading import read
from tests.faults.watching import FILLER, MIRROR, eventually, running
from tests.layers.images import (
    REPOSITORY,
    MadeLayer,
    ServedImage,
    estargz,
    gzipped,
    serve,
    tar_of,
    tree,
)
from tests.layers.stage import Stage, contents, running_stage, tree_of
from tests.parts.processes import run

pytestmark = pytest.mark.anyio
PATIENCE = 60.0
ENCRYPTED = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A mirror before a scripted upstream; each test has an image and layers that no other has."""
    with running_stage(tmp_path_factory.mktemp("ready")) as running:
        yield running


@pytest.fixture
def stage(shared: Stage) -> Iterator[Stage]:
    """The shared one, whose upstream behaves well at the start."""
    yield shared
    shared.upstream.clear_rules()


def ask_ready(stage: Stage, tag: str) -> str:
    """Ask for an image to be made ready; the job's id."""
    image = f"{stage.upstream.host}/{REPOSITORY}:{tag}"
    asked = {"image": image, "platform": "linux/amd64", "ready": True}
    return str(stage.mirror.ask("/warm", "POST", asked)["id"])


def seen(stage: Stage, id: str) -> Any:
    """The job; None while the mirror starts."""
    try:
        return stage.mirror.ask(f"/warm/{id}")
    except (urllib.error.HTTPError, OSError):
        return None


def ended(stage: Stage, id: str) -> Any:
    """The job once it has ended."""
    found: list[Any] = []

    def has_ended() -> bool:
        job = seen(stage, id)
        if job is not None and job["state"] in ("done", "failed", "cancelled"):
            found.append(job)
        return bool(found)

    eventually(has_ended, PATIENCE, "the job has ended")
    return found[0]


async def test_an_image_is_ready_though_filler_and_mirror_are_killed_on_the_way(
    stage: Stage, tmp_path: Path
) -> None:
    trees = [tree(101, 60), {"weights": os.urandom(6 << 20)}]
    layers = [gzipped(tar_of(trees[0])), estargz(tar_of(trees[1]))]
    image = serve(stage.upstream, layers, tag="killed")
    stage.upstream.add_rule(Rule(path="/blobs/", rate=1 << 20))

    def kill(id: str, module: str, done: int) -> None:
        """Once the eStargz layer has come so far."""

        def so_far() -> bool:
            job = seen(stage, id)
            layers = job["images"][0]["layers"] if job else []
            return len(layers) == 3 and layers[2]["done"] >= done

        eventually(so_far, PATIENCE, f"{done} bytes of the layer are here")
        os.kill(running(stage.mirror, module), signal.SIGKILL)

    def killed_twice() -> Any:
        id = ask_ready(stage, "killed")
        kill(id, FILLER, 1 << 20)
        kill(id, MIRROR, 2 << 20)
        eventually(stage.mirror.ready, PATIENCE, "the mirror is back")
        stage.upstream.clear_rules()
        job = ended(stage, id)
        assert f"warm job {id} goes on" in stage.mirror.log.read_text()
        return job

    with anyio.fail_after(PATIENCE):
        job = await anyio.to_thread.run_sync(killed_twice)
        assert (job["state"], job["notes"], job["failure"]) == ("done", [], None)
        assert job["bytes_done"] == job["bytes_wanted"]
        stage.upstream.add_rule(Rule(close_before_answer=True))
        await expect_mounted(stage, image, trees, tmp_path)
    # One layer is written once, uncompressed; its blob never lies on the disk.
    for layer in image.layers:
        assert not [path for path in stage.files_below("blobs") if layer.digest.hex in path.name]


async def expect_mounted(
    stage: Stage, image: ServedImage, trees: list[dict[str, bytes]], directory: Path
) -> None:
    """Nobody has pulled the image: its chain IDs are known, its layer images are complete."""
    async with stage.client() as client:
        for chain, files in zip(image.chains, trees, strict=True):
            async with stage.opened(client, chain) as (_, layer):
                assert layer.state == "complete"
                with tree_of(layer, directory / chain.hex) as root:
                    shown = contents(root)
                    assert {name: shown[name] for name in files} == files


def bare(name: str) -> MadeLayer:
    """A layer of one file, without entries for its directories."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        archive.addfile(entry, io.BytesIO(name[:1].encode()))
    return gzipped(output.getvalue())


async def test_layers_that_cannot_be_mounted_are_brought_as_blobs_each_time(stage: Stage) -> None:
    base = gzipped(tar_of({"etc/motd": b"hello\n"}))
    sealed = MadeLayer(b"sealed" * 1000, b"unknown", ENCRYPTED)
    liar = gzipped(tar_of({"etc/other": b"other\n"}))
    layers = [base, bare("opt/tool"), sealed, liar]
    diff_ids = [*(layer.diff_id for layer in layers[:3]), Digest.of(b"another tar")]
    serve(stage.upstream, layers, diff_ids=diff_ids, tag="odd")

    def try_it() -> None:
        # What is refused is remembered: it is another answer of the filler the second time.
        for _ in range(2):
            job = ended(stage, ask_ready(stage, "odd"))
            assert (job["state"], job["failure"]) == ("done", None)
            assert job["bytes_done"] == job["bytes_wanted"]
            notes = sorted(note.partition(": ")[2] for note in job["notes"])
            assert len(notes) == 3
            for note, reason in zip(
                notes,
                (
                    f"{ENCRYPTED!r} is no media type of a layer that can be mounted",
                    "it has no entry for its directory 'opt'",
                    f"its tar has the digest {liar.diff_id}, not the diff ID {diff_ids[3]}",
                ),
                strict=True,
            ):
                assert note == f"cannot be mounted and is brought as a blob: {reason}"
        stage.upstream.add_rule(Rule(close_before_answer=True))
        for layer in layers[1:]:
            target = f"/v2/{REPOSITORY}/blobs/{layer.digest}?ns={stage.upstream.host}"
            assert read(stage.mirror.port, target).body == layer.blob

    await anyio.to_thread.run_sync(try_it)


async def test_a_layer_of_other_bytes_than_its_digest_fails_the_job(stage: Stage) -> None:
    layer = gzipped(tar_of(tree(102, 10)))
    serve(stage.upstream, [layer], tag="wrong")
    stage.upstream.add_rule(Rule(path=str(layer.digest), flip=len(layer.blob) // 2))

    def try_it() -> None:
        job = ended(stage, ask_ready(stage, "wrong"))
        assert job["state"] == "failed"
        assert job["failure"]["code"] in ("digest", "upstream")
        assert str(layer.digest) in job["failure"]["text"]

    await anyio.to_thread.run_sync(try_it)


async def test_the_command_makes_an_image_ready_and_says_what_cannot_be_mounted(
    stage: Stage,
) -> None:
    layers = [gzipped(tar_of({"etc/issue": b"welcome\n"})), bare("srv/tool")]
    serve(stage.upstream, layers, tag="typed")
    name = f"{stage.upstream.host}/{REPOSITORY}:typed"
    file = stage.mirror.directory / "config.yaml"
    typed: list[str | Path] = ["headstart", "--config", file, "warm", "--ready", name]
    said = (await anyio.to_thread.run_sync(run, typed)).stdout
    assert f"\nwarm: {name}: " in said
    note = f"{layers[1].digest}: cannot be mounted and is brought as a blob: it has no entry for"
    assert note in said
    (job,) = (job for job in stage.mirror.ask("/warm")["jobs"] if job["images"] == [name])
    assert (job["state"], job["ready"]) == ("done", True)
