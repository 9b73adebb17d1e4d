"""Debian's containerd and runc with our snapshots, pulled by ctr and by CRI."""

import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from tests.parts.images import push
from tests.parts.processes import ProcessFailed
from tests.parts.registry import Registry
from tests.snapshotter.private_containerd import HeadstartContainerd
from tests.snapshotter.runnable import SHOW, RunnableImage, compiled, make_runnable_image
from tests.snapshotter.snapshotter_process import SnapshotterProcess

CRI = "k8s.io"


@dataclass
class Node:
    """A registry, a snapshotter and a containerd that uses it."""

    directory: Path
    registry: Registry
    snapshotter: SnapshotterProcess
    containerd: HeadstartContainerd
    program: bytes
    numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def push(self, *layers: Mapping[str, bytes]) -> tuple[str, RunnableImage]:
        """Push an image of the program and these layers, none of which another has."""
        name = f"i{next(self.numbers)}"
        own = [{"etc/image": name.encode(), **layer} for layer in ({SHOW: self.program}, *layers)]
        image = make_runnable_image(self.directory / name, own)
        return push(image.image, self.registry, f"team/{name}:1"), image

    def push_known(self, *layers: Mapping[str, bytes]) -> tuple[str, RunnableImage]:
        """The same, of an image that the mirror has seen."""
        reference, image = self.push(*layers)
        self.snapshotter.layers.add(image.layers("team"), image.directories)
        return reference, image

    def snapshots(self, namespace: str) -> dict[str, str]:
        """Keys and kinds of the snapshots, as containerd lists them."""
        listed = self.containerd.ctr(
            ["-n", namespace, "snapshots", "--snapshotter", "headstart", "list"]
        )
        lines = [line.split() for line in listed.splitlines()[1:]]
        return {line[0]: line[-1] for line in lines}

    def downloaded(self, image: RunnableImage) -> list[bool]:
        """Which layers' blobs containerd has."""
        content = self.containerd.content
        digests = [layer.digest for layer in image.layers("team")]
        return [(content / digest.hex).exists() for digest in digests]

    def own_directories(self) -> set[str]:
        """The numbers of the snapshots that have a directory."""
        return {path.name for path in (self.snapshotter.root / "snapshots").iterdir()}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node for all tests; each test has an image of its own."""
    directory = tmp_path_factory.mktemp("node")
    with ExitStack() as stack:
        program = compiled(directory)
        registry = stack.enter_context(Registry(directory / "registry"))
        snapshotter = stack.enter_context(SnapshotterProcess(directory / "snapshotter"))
        containerd = HeadstartContainerd(directory / "containerd", snapshotter.socket)
        stack.enter_context(containerd)
        containerd.use(registry)
        yield Node(directory, registry, snapshotter, containerd, program)


def eventually(condition: Callable[[], bool], deadline: float = 20.0) -> None:
    """Wait for what containerd does on its own time."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_without_the_label_it_is_an_ordinary_overlay_snapshotter(node: Node) -> None:
    reference, image = node.push({"etc/base": b"base "}, {"etc/top": b"top ", "etc/base": b"new "})
    node.containerd.pull(reference)
    assert all(node.downloaded(image))
    shown = node.containerd.run(reference, "first", "/etc/base", "/etc/top", "+/etc/base")
    assert shown == "new top "
    assert node.containerd.run(reference, "second", "/etc/base") == "new "
    listed = node.snapshots("default")
    assert set(listed.values()) == {"Committed"} and len(listed) == 3
    usage = node.containerd.ctr(["snapshots", "--snapshotter", "headstart", "usage"])
    sizes = dict(line.split(maxsplit=1) for line in usage.splitlines()[1:])
    assert set(sizes) == set(listed)
    program_layer = image.image.platform().diff_ids[0]
    assert re.search(r"KiB|MiB", sizes[program_layer])
    node.containerd.ctr(["images", "rm", "--sync", reference])
    assert node.snapshots("default") == {}
    eventually(lambda: node.own_directories() == set())


def test_cri_pulls_a_known_image_without_any_of_its_layers(node: Node) -> None:
    reference, image = node.push_known({"etc/base": b"base "}, {"etc/top": b"top "})
    node.containerd.cri_pull(reference)
    assert node.downloaded(image) == [False, False, False]
    assert list(node.snapshots(CRI).values()) == ["Committed"] * 3
    assert node.own_directories() == set()
    shown = node.containerd.run(
        reference, "remote", "/etc/base", "/etc/top", "+/etc/base", namespace=CRI
    )
    assert shown == "base top "
    assert (image.directories[1] / "etc/base").read_bytes() == b"base "
    # A second pull finds everything.
    node.containerd.cri_pull(reference)
    node.containerd.cri_remove(reference)
    eventually(lambda: node.snapshots(CRI) == {})
    layers = image.layers("team")
    files = node.snapshotter.layers
    eventually(lambda: all(files.file(layer, "unmounted").exists() for layer in layers))


def test_cri_unpacks_what_the_mirror_has_not_seen(node: Node) -> None:
    reference, image = node.push({"etc/base": b"base "})
    node.containerd.cri_pull(reference)
    assert node.downloaded(image) == [True, True]
    assert node.containerd.run(reference, "unknown", "/etc/base", namespace=CRI) == "base "
    node.containerd.cri_remove(reference)


def test_f51_a_pull_that_a_layer_fails_works_the_second_time(node: Node) -> None:
    reference, image = node.push_known({"etc/base": b"base "}, {"etc/top": b"top "})
    node.snapshotter.layers.file(image.layers("team")[1], "failed").write_text("chunk 7 is wrong")
    with pytest.raises(grpc.RpcError) as failed:
        node.containerd.cri_pull(reference)
    assert "chunk 7 is wrong" in str(failed.value)
    # containerd collects the snapshot some milliseconds later.
    eventually(lambda: len(node.snapshots(CRI)) == 0)
    node.containerd.cri_pull(reference)
    assert node.downloaded(image) == [False, True, True]
    shown = node.containerd.run(reference, "again", "/etc/base", "/etc/top", namespace=CRI)
    assert shown == "base top "
    node.containerd.cri_remove(reference)


def test_containers_are_made_and_images_collected_while_a_pull_waits(node: Node) -> None:
    other, _ = node.push_known({"etc/other": b"other "})
    third, third_image = node.push({"etc/third": b"third "})
    third_layers = {third_image.image.platform().diff_ids[0]}
    reference, image = node.push_known({"etc/base": b"base "})
    node.containerd.cri_pull(other)
    node.containerd.cri_pull(third)
    layer = image.layers("team")[1]
    files = node.snapshotter.layers
    files.file(layer, "held").touch()
    with ThreadPoolExecutor(1) as threads:
        pull = threads.submit(node.containerd.cri_pull, reference)
        try:
            eventually(files.file(layer, "waiting").exists)
            # A garbage collection in between: it takes the lock that a Prepare would hold.
            node.containerd.cri_remove(third)
            eventually(lambda: third_layers.isdisjoint(node.snapshots(CRI)))
            shown = node.containerd.run(other, "meanwhile", "/etc/other", namespace=CRI)
            assert shown == "other " and not pull.done()
        finally:
            files.file(layer, "held").unlink()
        pull.result(timeout=30)
    assert node.containerd.run(reference, "waited", "/etc/base", namespace=CRI) == "base "
    assert node.downloaded(image) == [False, False]
    for done in (other, reference):
        node.containerd.cri_remove(done)


def test_127_layers(node: Node) -> None:
    layers: list[Mapping[str, bytes]] = [
        {f"etc/{number}": b"%d " % number, "etc/last": b"%d " % number} for number in range(1, 127)
    ]
    # One comes twice, which an overlay does not take.
    layers[100] = layers[50]
    reference, image = node.push_known(*layers)
    node.containerd.cri_pull(reference)
    assert not any(node.downloaded(image))
    files = ["/etc/1", "/etc/51", "/etc/64", "/etc/126", "/etc/last"]
    shown = node.containerd.run(reference, "many", *files, namespace=CRI)
    assert shown == "1 51 64 126 126 "
    node.containerd.cri_remove(reference)


def test_f46_containers_run_on_and_images_go_while_the_snapshotter_is_killed(node: Node) -> None:
    reference, _ = node.push_known({"etc/base": b"base "})
    removed, _ = node.push_known({"etc/gone": b"gone "})
    ctr = node.containerd.ctr
    node.containerd.cri_pull(reference)
    node.containerd.cri_pull(removed)
    options = ["--detach", "--net-host", "--snapshotter", "headstart"]
    ctr(["-n", CRI, "run", *options, reference, "runs", "/bin/show", "-"])
    show = ["-n", CRI, "tasks", "exec", "--exec-id", "look", "runs", "/bin/show", "/etc/base"]
    try:
        node.snapshotter.kill()
        assert ctr(show) == "base "
        with pytest.raises(ProcessFailed):
            node.containerd.run(reference, "new", "/etc/base", namespace=CRI)
        node.containerd.cri_remove(removed)
        # f48: containerd restarts too.
        node.containerd.stop()
        node.snapshotter.start()
        node.containerd.start()
        assert ctr(show) == "base "
        assert node.containerd.run(reference, "new", "/etc/base", namespace=CRI) == "base "
    finally:
        if node.snapshotter.process is None:
            node.snapshotter.start()
        ctr(["-n", CRI, "tasks", "kill", "--signal", "SIGKILL", "runs"])
        eventually(lambda: "RUNNING" not in ctr(["-n", CRI, "tasks", "list"]))
        ctr(["-n", CRI, "tasks", "rm", "runs"])
        ctr(["-n", CRI, "containers", "rm", "runs"])
    node.containerd.cri_remove(reference)
    eventually(lambda: node.snapshots(CRI) == {})
