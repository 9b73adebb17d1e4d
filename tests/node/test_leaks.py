"""Images come and go; what the node holds for them goes too."""

import os
from pathlib import Path

import pytest

from tests.content.estargz.writer import Form
from tests.faults.watching import eventually
from tests.layers.images import estargz, gzipped, serve
from tests.node.node import Node
from tests.node.trees import base_layer, changing_layer

FORM = Form(chunk_size=256 << 10)
VICTIMS = ("filler", "daemon", "snapshotter", "mirror")


def held(node: Node, *, idle: bool) -> dict[str, int]:
    """How much of everything is in use for layers; ``idle``: what is kept for a while, too."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    own = [str(node.snapshotter.root), str(node.containerd.address.parent)]
    found = {
        "mounts": sum(any(directory in line for directory in own) for line in lines),
        "loop devices": sum(str(node.mirror.directory) in name for name in loop_files()),
        "snapshots": len(node.snapshots()),
        "layers in use": len(node.used_layers()),
        "directories": len(os.listdir(node.snapshotter.root / "snapshots")),
    }
    for name, pid in node.processes().items():
        # These two keep files and connections for half a minute: that is for the long form.
        if idle or name not in ("filler", "mirror"):
            found[f"descriptors of the {name}"] = len(os.listdir(f"/proc/{pid}/fd"))
    return found


def running(node: Node) -> bool:
    """Whether all processes are there."""
    try:
        return bool(node.processes())
    except ProcessLookupError:
        return False


def loop_files() -> list[str]:
    """The files that loop devices are made of."""
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    return [path.read_text() for path in files]


def cycle(node: Node, number: int, program: bytes) -> None:
    """An image is pulled, run and removed."""
    seed = 1000 + 2 * number
    layers = [gzipped(base_layer(program, seed, 3)), estargz(changing_layer(seed + 1, 3), FORM)]
    serve(node.upstream, layers, repository=f"team/cycle{number}")
    reference = node.reference(f"team/cycle{number}:v1")
    node.cri.pull(reference)
    printed = node.containerd.run(reference, f"cycle{number}", "/etc/motd", namespace="k8s.io")
    assert printed == "good evening\n"
    node.cri.remove_image(reference)


@pytest.mark.parametrize(
    ("cycles", "kills"),
    [
        pytest.param(10, False, id="short"),
        pytest.param(100, True, id="with kills", marks=pytest.mark.soak),
    ],
)
def test_f50_images_pulled_run_and_removed_leave_nothing(
    node: Node, program: bytes, cycles: int, kills: bool
) -> None:
    first = 1000 * kills
    for number in range(2):
        cycle(node, first + number, program)
    settled: list[dict[str, int]] = []

    def calm() -> bool:
        settled.append(held(node, idle=kills))
        return len(settled) > 5 and all(one == settled[-1] for one in settled[-5:])

    eventually(calm, 60, "what two cycles leave has gone")
    before = settled[-1]
    for number in range(2, cycles + 2):
        cycle(node, first + number, program)
        if kills and number % 5 == 0:
            node.kill(VICTIMS[number // 5 % len(VICTIMS)])
            eventually(lambda: running(node), 30, "all run again")
            node.reconnected()
    last: dict[str, int] = {}

    def back() -> bool:
        last.update(held(node, idle=kills))
        return all(last[name] <= most for name, most in before.items())

    try:
        eventually(back, 60, "everything is as before")
    finally:
        print(f"before {before}")
        print(f"after  {last}")
