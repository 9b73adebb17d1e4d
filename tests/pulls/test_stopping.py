"""``headstart serve`` is told to stop while a pull is under way."""

import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.parts.mirror import Mirror, upstream_at
from tests.parts.nginx import Front
from tests.parts.pattern import Pattern
from tests.parts.registry import Registry
from tests.parts.registry_api import RegistryApi, StreamedAnswer
from tests.pulls.upstreams import HOST

MIB = 1 << 20
REPOSITORY = "team/app"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pull_under_way_gets_all_its_bytes(
    parts: ExitStack, registry: Registry, tmp_path: Path, number: signal.Signals
) -> None:
    front = Front(tmp_path / "front", registry.url, limit_rate=4 * MIB)
    parts.enter_context(front)
    mirror = Mirror(
        tmp_path / "mirror",
        {HOST: upstream_at(front.url)},
        settings={"fetch": {"max_connections": 1}},
    )
    parts.enter_context(mirror)
    blob = Pattern(8 * MIB)
    digest = RegistryApi(registry.url).push_blob(REPOSITORY, blob)
    answers: list[StreamedAnswer] = []

    def pull() -> None:
        answers.append(RegistryApi(mirror.url).read(f"/v2/{REPOSITORY}/blobs/{digest}?ns={HOST}"))

    pulling = threading.Thread(target=pull)
    pulling.start()
    while not any(pull["bytes"] for pull in mirror.ask("/pulls")["running"]):
        assert pulling.is_alive()
        time.sleep(0.02)
    if number == signal.SIGINT:
        # The terminal's Ctrl-C reaches every process of the group.
        os.killpg(mirror.running.pid, number)
    else:
        mirror.running.signal(number)
    pulling.join(30)
    assert [(answer.status, answer.digest) for answer in answers] == [(200, digest)]
    deadline = time.monotonic() + 10
    while (status := mirror.running.exit_status()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert status == 0
