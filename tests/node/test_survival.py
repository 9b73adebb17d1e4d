"""A container goes on to read one open file while each process of ours is killed in turn."""

import hashlib
import os
import random
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.content.estargz.writer import Form
from tests.layers.images import estargz, serve
from tests.node.node import Node
from tests.node.trees import Archive, base_layer
from tests.parts.processes import program as path_of

MIB = 1 << 20
CONNECTION_RATE = MIB
PAUSE = 1.0
LONGEST_STALL = 6.0
USUAL_STALL = 3.0


class Reading:
    """What a container prints, as it comes: all bytes of one file, through one descriptor."""

    def __init__(self, node: Node, reference: str, file: str) -> None:
        ctr = [path_of("ctr"), "--address", str(node.containerd.address), "-n", "k8s.io"]
        options = ["--rm", "--net-host", "--snapshotter", "headstart"]
        self._process = subprocess.Popen(
            [*ctr, "run", *options, reference, "reader", "/bin/show", file],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.received = 0
        self.digest = hashlib.sha256()
        self.stalls: list[float] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        output = self._process.stdout
        assert output is not None
        last = time.monotonic()
        while piece := os.read(output.fileno(), 1 << 16):
            now = time.monotonic()
            self.stalls.append(now - last)
            if now - last > 0.5:
                print(f"stall {now - last:.2f} until {time.time() % 1000:.2f} at {self.received}")
            last = now
            self.digest.update(piece)
            self.received += len(piece)

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def finish(self, patience: float) -> tuple[int, str]:
        """Exit status and what was printed as errors."""
        self._thread.join(patience)
        assert self.ended, f"after {patience} s {self.received} bytes have come"
        _, errors = self._process.communicate(timeout=20)
        return self._process.returncode, errors.decode()


def kill_each_in_turn(node: Node, rounds: int, reading: Reading, pause: float) -> list[str]:
    """SIGKILL, ``rounds`` times each of our processes; who was killed, in order."""
    killed: list[str] = []
    for _ in range(rounds):
        for name in ("filler", "mirror", "daemon", "snapshotter"):
            if reading.ended:
                return killed
            time.sleep(pause)
            print(f"kill {name} {time.time() % 1000:.2f}")
            node.kill(name)
            killed.append(name)
    return killed


@pytest.mark.parametrize(
    "rounds", [pytest.param(2, id="short"), pytest.param(20, id="long", marks=pytest.mark.soak)]
)
def test_f43_f44_f46_a_container_reads_on_while_each_process_is_killed_in_turn(
    node: Node, program: bytes, rounds: int, tmp_path: Path
) -> None:
    # Eight connections bring less than this until the last kill.
    size = int(8 * CONNECTION_RATE * PAUSE * 4 * rounds)
    weights = random.Random(31 + rounds).randbytes(size)
    archive = Archive()
    archive.add("models/weights", weights)
    form = Form(chunk_size=256 << 10)
    layers = [estargz(base_layer(program, 31, 10), form), estargz(archive.finish(), form)]
    image = serve(node.upstream, layers, repository=f"team/survival{rounds}")
    reference = node.reference(f"team/survival{rounds}:v1")
    with node.slowly(image.layers[1].digest, CONNECTION_RATE) as slow:
        node.containerd.cri_pull(reference)
        reading = Reading(node, reference, "/models/weights")
        killed = kill_each_in_turn(node, rounds, reading, PAUSE)
        assert not reading.ended, f"it was over after {len(killed)} kills"
        slow.rate = None
        node.upstream.drop_connections()
        status, errors = reading.finish(60)
    assert (status, errors) == (0, "")
    assert reading.received == size
    assert reading.digest.hexdigest() == hashlib.sha256(weights).hexdigest()
    stalls = sorted(reading.stalls)
    print(f"{len(killed)} kills, stalls: longest {stalls[-1]:.2f} s")
    assert len(killed) == 4 * rounds
    assert stalls[-1] < LONGEST_STALL
    assert stalls[int(len(stalls) * 0.99)] < USUAL_STALL
