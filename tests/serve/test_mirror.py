"""The mirror's process as the launcher starts it: its life, its sockets, its end."""

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.doubles.certificates import Authority
from tests.doubles.scripted_upstream import ScriptedUpstream
from tests.parts.ports import free_port
from tests.serve.running_server import wait_until
from tests.serve.scripted_filler import ScriptedFiller
from tests.serve.serving import MANIFEST, PAYLOAD, keys_of, whole_blob

PATIENCE = 20.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


class MirrorProcess:
    """``python -m proxy.mirror`` with a configuration of its own."""

    def __init__(self, directory: Path, filler: ScriptedFiller, **sections: object) -> None:
        self.port = free_port()
        self.control = filler.layout.run / "control.sock"
        content = {
            "mirror": {"listen": f"127.0.0.1:{self.port}"},
            "cache": {"stripes": [{"path": str(path)} for path in filler.layout.stripes]},
            **sections,
        }
        self.file = directory / "config.yaml"
        self.file.write_text(yaml.safe_dump(content))
        self.log = directory / "mirror.log"

    @contextmanager
    def run(self) -> Iterator[subprocess.Popen[bytes]]:
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "proxy.mirror", "--config", str(self.file)],
                cwd=Path(__file__).parents[2],
                stderr=log,
                env={**os.environ, "HEADSTART_LAUNCHER_PID": ""},
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def start(self, process: subprocess.Popen[bytes]) -> None:
        """Return when it answers."""
        wait_until(lambda: process.poll() is not None or self.answers(), PATIENCE)
        assert process.poll() is None, self.log.read_text()

    def answers(self) -> bool:
        with socket.socket() as caller:
            return caller.connect_ex(("127.0.0.1", self.port)) == 0

    def ask(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        return answer_of(connection, path, method)


def answer_of(
    connection: http.client.HTTPConnection, path: str, method: str = "GET"
) -> tuple[int, bytes]:
    """Status and body."""
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def upstreams_of(upstream: ScriptedUpstream) -> dict[str, object]:
    return {upstream.host: keys_of(upstream)}


def test_serves_and_ends_in_order(
    tmp_path: Path, filler: ScriptedFiller, upstream: ScriptedUpstream
) -> None:
    upstream.add_manifest("team/app", MANIFEST, tags=["latest"])
    digest = whole_blob(filler)
    mirror = MirrorProcess(tmp_path, filler, upstreams=upstreams_of(upstream))
    with mirror.run() as process:
        mirror.start(process)
        prefix = f"/v2/{upstream.host}/team/app"
        assert mirror.ask("/v2/") == (200, b"{}")
        assert mirror.ask(f"{prefix}/manifests/latest") == (200, MANIFEST)
        assert mirror.ask(f"{prefix}/blobs/{digest}") == (200, PAYLOAD)
        assert mirror.ask("/readyz")[0] == 200
        assert mirror.ask("/nowhere")[0] == 404
        wait_until(lambda: mirror.control.is_socket())
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert not mirror.control.exists()
    log = mirror.log.read_text()
    assert "mirror: ready on 127.0.0.1:" in log
    assert "ERROR" not in log and "Traceback" not in log


def test_f42_a_pull_under_way_is_drained(
    tmp_path: Path, filler: ScriptedFiller, upstream: ScriptedUpstream
) -> None:
    digest = filler.add_blob(PAYLOAD)
    mirror = MirrorProcess(tmp_path, filler, upstreams=upstreams_of(upstream))
    with mirror.run() as process:
        mirror.start(process)
        connection = http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=PATIENCE)
        connection.request("GET", f"/v2/{upstream.host}/team/app/blobs/{digest}")
        wait_until(lambda: filler.open_wants() == 1)
        filler.bring(digest, 256 * 1024)
        response = connection.getresponse()
        assert response.read(1000) == PAYLOAD[:1000]
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not mirror.answers())
        filler.bring(digest)
        filler.verify(digest)
        assert response.read() == PAYLOAD[1000:]
        connection.close()
        assert process.wait(PATIENCE) == 0


def test_control_socket_is_told_from_the_others(
    tmp_path: Path, filler: ScriptedFiller, upstream: ScriptedUpstream
) -> None:
    other = tmp_path / "mirror.sock"
    mirror = MirrorProcess(tmp_path, filler, upstreams=upstreams_of(upstream))
    content = yaml.safe_load(mirror.file.read_text())
    content["mirror"]["listen"] = [f"127.0.0.1:{mirror.port}", f"unix:{other}"]
    mirror.file.write_text(yaml.safe_dump(content))
    with mirror.run() as process:
        mirror.start(process)
        wait_until(lambda: mirror.control.is_socket())
        assert mirror.control.stat().st_mode & 0o777 == 0o660
        status, pulls = answer_of(UnixConnection(mirror.control), "/pulls")
        assert (status, sorted(json.loads(pulls))) == (200, ["recent", "running"])
        assert answer_of(UnixConnection(other), "/v2/") == (200, b"{}")
        assert answer_of(UnixConnection(other), "/pulls")[0] == 403


def test_tls(
    tmp_path: Path, filler: ScriptedFiller, upstream: ScriptedUpstream, authority: Authority
) -> None:
    certificate = authority.issue("127.0.0.1")
    digest = whole_blob(filler)
    mirror = MirrorProcess(tmp_path, filler, upstreams=upstreams_of(upstream))
    content = yaml.safe_load(mirror.file.read_text())
    content["mirror"]["tls"] = {
        "certificate": str(certificate.certificate),
        "key": str(certificate.key),
    }
    mirror.file.write_text(yaml.safe_dump(content))
    with mirror.run() as process:
        mirror.start(process)
        context = ssl.create_default_context(cafile=str(authority.ca_file))
        connection = http.client.HTTPSConnection(
            "127.0.0.1", mirror.port, timeout=PATIENCE, context=context
        )
        path = f"/v2/{upstream.host}/team/app/blobs/{digest}"
        assert answer_of(connection, path) == (200, PAYLOAD)
        wait_until(lambda: mirror.control.is_socket())
        assert answer_of(UnixConnection(mirror.control), "/readyz")[0] == 200


def test_without_a_filler_it_answers_and_is_not_ready(
    tmp_path: Path, filler: ScriptedFiller, upstream: ScriptedUpstream
) -> None:
    filler.stop()
    mirror = MirrorProcess(tmp_path, filler, upstreams=upstreams_of(upstream))
    with mirror.run() as process:
        mirror.start(process)
        assert mirror.ask("/v2/") == (200, b"{}")
        assert mirror.ask("/healthz")[0] == 200
        assert mirror.ask("/readyz")[0] == 503
        assert not mirror.control.exists()
        filler.start()
        wait_until(lambda: mirror.ask("/readyz")[0] == 200)
        wait_until(lambda: mirror.control.is_socket())


def ends_with_one_line(mirror: MirrorProcess) -> str:
    with mirror.run() as process:
        assert process.wait(PATIENCE) == 2
    lines = [line for line in mirror.log.read_text().splitlines() if "INFO" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("headstart: ")
    return lines[0]


def test_port_in_use_is_said_in_one_line(tmp_path: Path, filler: ScriptedFiller) -> None:
    mirror = MirrorProcess(tmp_path, filler)
    with socket.create_server(("127.0.0.1", mirror.port)):
        line = ends_with_one_line(mirror)
    assert f"127.0.0.1:{mirror.port} is in use" in line


def test_control_socket_in_use_is_said_in_one_line(tmp_path: Path, filler: ScriptedFiller) -> None:
    mirror = MirrorProcess(tmp_path, filler)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(mirror.control))
        other.listen()
        assert "control.sock is in use by another process" in ends_with_one_line(mirror)
        assert mirror.control.is_socket()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"mirror": {"lisen": "x"}}, "did you mean listen"),
        ({"mirror": {"tls": {"certificate": "absent.pem", "key": "absent.pem"}}}, "absent.pem"),
    ],
)
def test_bad_configuration_is_said_in_one_line(
    tmp_path: Path, filler: ScriptedFiller, section: dict[str, object], words: str
) -> None:
    assert words in ends_with_one_line(MirrorProcess(tmp_path, filler, **section))


def test_certificate_that_is_none_is_said_in_one_line(
    tmp_path: Path, filler: ScriptedFiller
) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    tls = {"certificate": str(tmp_path / "bad.pem"), "key": str(tmp_path / "bad.pem")}
    mirror = MirrorProcess(tmp_path, filler, mirror={"listen": "127.0.0.1:0", "tls": tls})
    assert "mirror.tls" in ends_with_one_line(mirror)


def test_idle_process_is_small(
    tmp_path: Path, filler: ScriptedFiller, upstream: ScriptedUpstream
) -> None:
    mirror = MirrorProcess(tmp_path, filler, upstreams=upstreams_of(upstream))
    with mirror.run() as process:
        mirror.start(process)
        time.sleep(0.2)
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        assert int(peak.split()[1]) < 100 * 1024
