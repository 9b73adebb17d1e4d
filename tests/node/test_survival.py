"""A container goes on to read one open file while each process of ours is killed in turn."""

import bisect
import hashlib
import math
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from tests.content.estargz.writer import Form
from tests.layers.images import estargz, serve
from tests.node.node import Node, running_node
from tests.node.trees import Archive, base_layer
from tests.parts.processes import program as path_of

MIB = 1 << 20
CONNECTIONS = 2
CONNECTION_RATE = 4 * MIB
"""So fast that a read of the kernel (1 MiB) waits for a quarter of a second: what is longer is the
kill's."""
PAUSE = 1.0
LONGEST_STALL = 6.0
USUAL_STALL = 3.0
_JUST_BEFORE = 0.25


@pytest.fixture(scope="module")
def own_node(tmp_path_factory: pytest.TempPathFactory, program: bytes) -> Iterator[Node]:
    """A node with few connections to its upstream."""
    if os.geteuid() != 0:
        pytest.skip("a node mounts, and so has to run as root")
    settings: dict[str, dict[str, object]] = {
        "mount": {"repositories": ["*/team/*"]},
        "fetch": {"max_connections": CONNECTIONS},
    }
    with running_node(tmp_path_factory.mktemp("node"), pause=program, settings=settings) as running:
        yield running


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
        self.gaps: list[tuple[float, float]] = []
        """When each piece was waited for and when it had come (monotonic seconds)."""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        output = self._process.stdout
        assert output is not None
        last = time.monotonic()
        while piece := os.read(output.fileno(), 1 << 16):
            now = time.monotonic()
            self.gaps.append((last, now))
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


def kill_each_in_turn(
    node: Node, rounds: int, reading: Reading, pause: float
) -> list[tuple[float, str]]:
    """SIGKILL, ``rounds`` times each of our processes; when, and who was killed, in order."""
    killed: list[tuple[float, str]] = []
    for _ in range(rounds):
        for name in ("filler", "mirror", "daemon", "snapshotter"):
            if reading.ended:
                return killed
            time.sleep(pause)
            killed.append((time.monotonic(), name))
            node.kill(name)
    return killed


def stalls_by_kill(
    killed: list[tuple[float, str]], gaps: list[tuple[float, float]]
) -> list[tuple[str, float]]:
    """Who was killed, and the longest wait for a piece that began then, or just before."""
    times = [moment for moment, _ in killed]
    longest = [0.0] * len(killed)
    for begun, ended in gaps:
        number = bisect.bisect(times, begun + _JUST_BEFORE) - 1
        if number >= 0:
            longest[number] = max(longest[number], ended - begun)
    return [(name, stall) for (_, name), stall in zip(killed, longest, strict=True)]


def percentile(stalls: list[float], share: float) -> float:
    """The least stall that so many of them do not exceed."""
    return sorted(stalls)[math.ceil(len(stalls) * share) - 1]


@pytest.mark.parametrize(
    ("rounds", "usual"),
    [
        # Beside other tests on the same cores.
        pytest.param(2, LONGEST_STALL, id="short"),
        pytest.param(20, USUAL_STALL, id="long", marks=pytest.mark.soak),
    ],
)
def test_f43_f44_f46_a_container_reads_on_while_each_process_is_killed_in_turn(
    own_node: Node, program: bytes, rounds: int, usual: float
) -> None:
    node = own_node
    # All connections bring less than this until a while after the last kill, some of which take
    # longer than the pause.
    size = int(CONNECTIONS * CONNECTION_RATE * PAUSE * (5 * rounds + 1))
    chance = random.Random(31 + rounds)
    weights = b"".join(chance.randbytes(MIB) for _ in range(size // MIB))
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
        time.sleep(PAUSE)
        assert not reading.ended, f"it was over after {len(killed)} kills"
        gaps = list(reading.gaps)
        slow.rate = None
        node.upstream.drop_connections()
        status, errors = reading.finish(60)
    assert (status, errors) == (0, "")
    assert reading.received == size
    assert reading.digest.hexdigest() == hashlib.sha256(weights).hexdigest()
    stalls = stalls_by_kill(killed, gaps)
    for name in ("filler", "mirror", "daemon", "snapshotter"):
        own = [stall for victim, stall in stalls if victim == name]
        shares = (percentile(own, share) for share in (0.5, 0.99))
        print(f"{name}: stalls of {len(own)} kills, p50 and p99:", *(f"{s:.2f} s" for s in shares))
    assert len(killed) == 4 * rounds
    every = [stall for _, stall in stalls]
    assert max(every) < LONGEST_STALL
    assert percentile(every, 0.99) < usual
