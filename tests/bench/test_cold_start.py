"""The parts of a cold start that can be tried without one: the program, the link."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cold_node import own_seconds
from bench.link import Arrivals, Link
from bench.start_program import compiled
from tests.parts.processes import run


def test_the_program_says_what_it_has_read_then_serves_it(tmp_path: Path) -> None:
    program = compiled(tmp_path)
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    contents = [os.urandom(size) for size in (0, 5, 8, 3_000_001)]
    for number, content in enumerate(contents):
        (tree / "below" / str(number)).write_bytes(content)
    (tree / "link").symlink_to("/dev/zero")
    words = sum(
        int.from_bytes(content[start : start + 8], sys.byteorder)
        for content in contents
        for start in range(0, len(content), 8)
    )
    said = f"{sum(map(len, contents))} {words % (1 << 64)}\n"
    assert run([program, "0", tree]).stdout == said
    seconds, served = own_seconds(program, [str(tree)])
    assert served == said
    assert seconds > 0


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_a_link_is_limited_counted_and_removed() -> None:
    with Link("80mbit") as link:
        inside = ["ip", "netns", "exec", link.namespace, sys.executable, "-c"]
        sender = (
            "import socket; l = socket.create_server(('', 8080)); print(flush=True);"
            "c, _ = l.accept(); c.sendall(bytes(4 << 20)); c.close()"
        )
        with (
            Arrivals(link) as arrivals,
            subprocess.Popen([*inside, sender], stdout=subprocess.PIPE) as process,
        ):
            assert process.stdout is not None
            process.stdout.readline()
            receiver = f"exec 3<>/dev/tcp/{link.address}/8080; wc -c <&3"
            took = run(["bash", "-c", receiver])
        assert took.stdout.split() == [str(4 << 20)]
        # 4 MiB at 10 MB/s, less what may come at once.
        assert took.seconds > 0.25
        assert 4 << 20 < arrivals.size < 5 << 20
        assert arrivals.points[0][1] < arrivals.size
        name = link.namespace
    assert name not in run(["ip", "netns", "list"]).stdout
