"""Who waits for a layer, and who does not."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.watching import eventually
from tests.layers.images import gzipped, serve
from tests.node.node import Node
from tests.node.trees import Archive, base_layer

MIB = 1 << 20
LONGEST_CREATION = 8.0
LONGEST_RETURN = 8.0
"""Seconds; usual ones are in the test's output."""


@pytest.mark.parametrize(
    ("seconds", "size", "rate"),
    [
        # One or two connections, then eight.
        pytest.param(8, 6 * MIB, 512 << 10, id="short"),
        pytest.param(60, 64 * MIB, 128 << 10, id="long", marks=pytest.mark.soak),
    ],
)
def test_containers_come_and_go_while_a_pull_waits_for_an_ordinary_layer(
    node: Node, tmp_path: Path, program: bytes, seconds: int, size: int, rate: int
) -> None:
    small = node.reference(f"team/small{seconds}:v1")
    base = gzipped(base_layer(program, 300 + seconds, 10))
    serve(node.upstream, [base], repository=f"team/small{seconds}")
    node.cri.pull(small)
    archive = Archive()
    archive.add("weights", random.Random(seconds).randbytes(size))
    large = gzipped(archive.finish(), 1)
    serve(node.upstream, [base, large], repository=f"team/slow{seconds}")
    creations = []

    def pull() -> float:
        node.cri.pull(node.reference(f"team/slow{seconds}:v1"), deadline=seconds * 10)
        return time.monotonic()

    with (
        node.slowly(large.digest, rate),
        node.cri.pod(tmp_path) as pod,
        ThreadPoolExecutor(1) as threads,
    ):
        began = time.monotonic()
        waiting = threads.submit(pull)
        eventually(lambda: node.fetched(str(large.digest)) > 0, 30, "the layer is on its way")
        while not waiting.done():
            started = time.monotonic()
            container = pod.create(small, ["/bin/show", "-"])
            pod.remove(container)
            if not waiting.done():
                creations.append(time.monotonic() - started)
        returned = waiting.result()
    ends = [
        request.finished
        for request in node.upstream.blob_requests()
        if request.path.endswith(str(large.digest)) and request.finished is not None
    ]
    after = returned - max(ends)
    print(
        f"pull {returned - began:.1f} s, {after:.2f} s after the last byte; "
        f"{len(creations)} containers, longest {max(creations):.2f} s"
    )
    assert returned - began > seconds / 3, "the layer was awaited"
    assert len(creations) >= 3
    assert max(creations) < LONGEST_CREATION
    assert after < LONGEST_RETURN
    node.cri.remove_image(node.reference(f"team/slow{seconds}:v1"))
