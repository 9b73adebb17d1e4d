"""``headstart mount``, ``umount``, ``ls`` and ``cat`` as users run them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from headstart.command.platform import own_platform
from mount.image.filler_process import listens
from mount.image.records import ImageRecords
from mount.mounting.mount_table import mount_points, mounted_at
from mount.supervisor.control import NotRunning
from mount.supervisor.control import status as supervisor_status
from tests.doubles.scripted_upstream import ScriptedUpstream
from tests.layers.images import REPOSITORY, estargz, gzipped, serve, tar_of
from tests.mounting.conftest import unmount_below
from tests.parts.images import make_image, push
from tests.parts.layers import Layer
from tests.parts.processes import inherited_environment, program
from tests.parts.registry import Registry

MIB = 1 << 20
DEADLINE_SECONDS = 60.0


class Node:
    """A machine with a configuration, and a registry with an image."""

    def __init__(self, directory: Path, registry: Registry | ScriptedUpstream) -> None:
        self.directory = directory
        self.root = directory / "root"
        self.at = directory / "at"
        self.at.mkdir(parents=True)
        self.config = directory / "config.yaml"
        self.config.write_text(
            yaml.safe_dump(
                {
                    "mirror": {"default_upstream": None},
                    "cache": {"stripes": [{"path": str(directory / "cache")}]},
                    "upstreams": {registry.host: {"url": registry.url, "allow_private": True}},
                    "mount": {"mode": "tree", "root": str(self.root), "socket": str(directory / "socket")},
                }
            )
        )

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start ``headstart`` with these arguments."""
        return subprocess.Popen(
            [program("headstart"), "--config", str(self.config), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=inherited_environment(),
        )

    def run(self, *arguments: str, status: int = 0) -> str:
        """Run it to its end; what it prints, or says on standard error when it fails."""
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=DEADLINE_SECONDS)
        assert process.returncode == status, (output, errors)
        return errors if status else output

    def assert_nothing_left(self) -> None:
        """Nothing is mounted, no filler runs, no record and no layer directory is there."""
        assert [
            point for point in mount_points() if point.path.is_relative_to(self.directory)
        ] == []
        assert list((self.root / "mounts").iterdir()) == []
        assert list((self.root / "layers").iterdir()) == []
        assert not self.fillers()

    def fillers(self) -> list[int]:
        """Process ids of the fillers with our configuration."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"proxy.fill.process" in words and os.fsencode(self.config) in words:
                found.append(int(entry.name))
        return found


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> str:
    directory = tmp_path_factory.mktemp("images") / "image"
    layers = (Layer(300_000), Layer(10, compressed=False))
    return push(make_image(directory, layers, platforms=(str(own_platform()),)), registry, "app:1")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> str:
    directory = tmp_path_factory.mktemp("images") / "index"
    platforms = ("linux/arm64/v8", "linux/riscv64")
    return push(make_image(directory, [Layer(10)], platforms=platforms), registry, "index:1")


@pytest.fixture
def node(tmp_path: Path, registry: Registry) -> Iterator[Node]:
    yield Node(tmp_path / "node", registry)
    unmount_below(tmp_path)


def test_an_image_is_mounted_until_ctrl_c(node: Node, image: str) -> None:
    process = node.start("mount", image, str(node.at))
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == f"{image} is mounted at {node.at}\n"
        assert sorted(os.listdir(node.at / "content")) == ["0", "1"]
        assert (node.at / "content/0/big").stat().st_size == 300_000
        assert (node.at / "content/1/hard").read_text() == "layer 1\n"
        with pytest.raises(OSError, match="Read-only"):
            (node.at / "new").touch()
        assert len(node.fillers()) == 1
    finally:
        process.send_signal(signal.SIGINT)
        with process:
            output, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, output, errors) == (0, "", "")
    node.assert_nothing_left()


def test_an_image_is_mounted_in_the_background(node: Node, image: str) -> None:
    said = node.run("mount", "--detach", "--read-write", image, str(node.at))
    assert said == f"{image} is mounted at {node.at}; headstart umount ends it\n"
    (node.at / "content/1/small").write_text("changed")
    with (node.at / "content/1/small").open():
        refused = node.run("umount", str(node.at), status=1)
    assert refused.startswith(f"headstart: {node.at}: ") and "--lazy" in refused
    assert refused.count("\n") == 1
    gone = json.loads(node.run("--json", "umount", str(node.at)))
    assert gone == {"directory": str(node.at), "image": image, "writable": True, "layers": 2}
    node.assert_nothing_left()
    refused = node.run("umount", str(node.at), status=1)
    assert "no image is mounted here; mounted are: none" in refused


def test_who_is_killed_is_cleaned_up_after_by_umount(node: Node, image: str) -> None:
    process = node.start("mount", image, str(node.at))
    assert process.stdout is not None
    with process:
        process.stdout.readline()
        process.kill()
    # The filler's life was tied to its own; what is mounted needs neither.
    wait_until(lambda: not node.fillers())
    assert (node.at / "content/1/hard").read_text() == "layer 1\n"
    (record,) = ImageRecords(node.root).all()
    assert record.mounted()
    node.run("umount", str(node.at))
    node.assert_nothing_left()


def test_a_filler_that_runs_is_used(node: Node, image: str) -> None:
    with serving(node):
        fillers = node.fillers()
        node.run("mount", "--detach", image, str(node.at))
        assert node.fillers() == fillers
        assert (node.at / "content/1/hard").read_text() == "layer 1\n"
        node.run("umount", "--lazy", str(node.at))
        assert node.fillers() == fillers
        show_and_print_files(node, image)
    node.assert_nothing_left()


def show_and_print_files(node: Node, image: str) -> None:
    listed = node.run("ls", image, "/content/1").splitlines()
    assert [line.split()[-1] for line in listed] == ["big", "hard", "program", "small", "big"]
    assert listed[-1].split()[0] == "lrwxrwxrwx"
    names = [each["name"] for each in json.loads(node.run("--json", "ls", image))]
    assert names == ["content"]
    assert node.run("cat", image, "content/1/hard") == "layer 1\n"
    missing = node.run("cat", image, "content/nothing", status=1)
    assert missing.startswith("headstart: content/nothing: no such file")
    assert missing.count("\n") == 1


def test_an_image_with_tocs_is_mounted_before_it_is_whole(tmp_path: Path) -> None:
    weights = random.Random(1).randbytes(12 * MIB)
    tar = tar_of({"etc/motd": b"on its way\n", "weights": weights})
    with ScriptedUpstream() as upstream:
        node = Node(tmp_path / "node", upstream)
        layers = [estargz(tar), gzipped(tar_of({"top": b"top"}))]
        served = serve(upstream, layers)
        upstream.connection_rate = 256 * 1024
        try:
            name = f"{upstream.host}/{REPOSITORY}:v1"
            node.run("mount", "--detach", name, str(node.at))
            assert (node.at / "etc/motd").read_text() == "on its way\n"
            assert (node.at / "top").read_text() == "top"
            assert upstream.blob_bytes_sent() < len(served.layers[0].blob) // 2
            assert supervisor_runs(node.root)
            upstream.connection_rate = None
            assert (node.at / "weights").read_bytes() == weights
            node.run("umount", str(node.at))
            assert not supervisor_runs(node.root)
            node.assert_nothing_left()
        finally:
            unmount_below(tmp_path)


def supervisor_runs(root: Path) -> bool:
    try:
        return bool(supervisor_status(root))
    except NotRunning:
        return False


@contextmanager
def serving(node: Node) -> Iterator["subprocess.Popen[str]"]:
    """``headstart serve`` with the node's configuration."""
    text = yaml.safe_load(node.config.read_text())
    text["mirror"]["listen"] = f"unix:{node.directory}/mirror.sock"
    node.config.write_text(yaml.safe_dump(text))
    process = node.start("serve")
    try:
        wait_until(lambda: listens(node.directory / "cache/run/fill.sock"))
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE_SECONDS)


def wait_until(ready: Callable[[], bool]) -> None:
    """Look again and again."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["mount", "registry.test/team/app:1", "{at}"], 1, "is not among the upstreams"),
        (["mount", "{host}/nothing:1", "{at}"], 1, "{host}"),
        (["mount", "{image}", "{at}/missing"], 1, "missing: is no directory; make it first"),
        (["mount", "--platform", "linux/s390x", "{host}/index:1", "{at}"], 1, "--platform may be"),
        (["mount", "--detach", "registry.test/x/y:1", "{at}"], 1, "is not among the upstreams"),
        (["mount", "--platform", "linux", "{image}", "{at}"], 2, "write OS/ARCHITECTURE"),
        (["mount", "UPPER/case", "{at}"], 2, "is not valid"),
        (["ls", "a b"], 2, "is not valid"),
        (["cat", "{image}"], 2, "Missing argument"),
        (["mount", "{image}"], 2, "Missing argument"),
    ],
)
def test_an_error_is_one_line_with_the_remedy(
    node: Node,
    registry: Registry,
    image: str,
    index: str,
    arguments: list[str],
    status: int,
    said: str,
) -> None:
    values = {"at": str(node.at), "host": registry.host, "image": image}
    errors = node.run(*(each.format(**values) for each in arguments), status=status)
    assert errors.startswith("headstart: ") and errors.count("\n") == 1, errors
    assert said.format(**values) in errors
    assert not node.fillers()
    assert not mounted_at(node.at)


def test_a_filler_that_cannot_start_is_named(node: Node, image: str) -> None:
    (node.directory / "cache").write_text("no directory")
    errors = node.run("ls", image, status=1)
    assert errors.startswith("headstart: the filler did not start: cache.stripes: ")
    assert errors.count("\n") == 1


def test_mounting_needs_root(node: Node, image: str) -> None:
    node.directory.parent.chmod(0o755)
    process = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, image, str(node.at)], capture_output=True, text=True
    )
    assert process.returncode == 1
    assert process.stderr == "headstart: mounting needs root, and this is user id 65534; use sudo\n"


AS_NOBODY = """
import os, sys
from headstart.command.main import installed_programs, run
os.chdir("/")
import mount.image.commands
os.seteuid(65534)
sys.exit(run(["mount", *sys.argv[1:]], installed_programs()))
"""
