"""Processes and their logs: what starts, what is measured, what is left."""

import sys
import time
from pathlib import Path

import pytest

from tests.parts.curl import fetch
from tests.parts.ports import accepts
from tests.parts.processes import (
    Process,
    ProcessFailed,
    ProgramMissing,
    descriptors,
    peak_memory,
    run,
    tree,
)
from tests.parts.registry import Registry
from tests.parts.registry_api import RegistryApi
from tests.parts.server import logs_of_open_servers

MIB = 1 << 20

_BUSY_CHILD = """
import pathlib, time
memory = b"x" * (64 << 20)
files = [open("/dev/null") for _ in range(50)]
while time.process_time() < 0.3:
    pass
pathlib.Path("ready").touch()
time.sleep(60)
"""


def test_a_process_that_ends_early_is_reported_with_its_log(tmp_path: Path) -> None:
    process = Process(["sh", "-c", "echo broken; exit 3"], tmp_path / "log")
    with pytest.raises(ProcessFailed, match=r"status 3:\nbroken"):
        process.wait_until(lambda: False, deadline=5)


def test_a_process_that_is_late_is_reported_and_stopped_with_its_children(tmp_path: Path) -> None:
    process = Process(["sh", "-c", "trap '' TERM; sleep 60 & wait"], tmp_path / "log")
    with pytest.raises(ProcessFailed, match=r"not ready after 0\.2 s"):
        process.wait_until(lambda: False, deadline=0.2)
    family = tree(process.pid)
    assert len(family) == 2
    assert process.stop(grace=0.1) == -9
    deadline = time.monotonic() + 5
    while any(_alive(pid) for pid in family):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_memory_descriptors_and_cpu_of_a_process_tree_are_measured(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(_BUSY_CHILD)
    # `true` keeps the shell from becoming the child.
    command = f"{sys.executable} child.py; true"
    process = Process(["sh", "-c", command], tmp_path / "log", directory=tmp_path)
    try:
        process.wait_until((tmp_path / "ready").exists, deadline=10)
        assert 64 * MIB < process.peak_memory() < 128 * MIB
        assert process.descriptors() >= 50
        assert process.cpu_seconds() >= 0.2
    finally:
        process.stop()
    assert peak_memory(process.pid) == 0
    assert descriptors(process.pid) == 0


def test_a_missing_program_is_named() -> None:
    with pytest.raises(ProgramMissing, match="no-such-program is not installed"):
        run(["no-such-program"])


def test_a_command_that_takes_too_long_is_killed() -> None:
    with pytest.raises(ProcessFailed, match=r"killed after 0\.2 s"):
        run(["sleep", "60"], deadline=0.2)


def test_logs_of_running_servers_are_at_hand(registry: Registry) -> None:
    fetch(f"{registry.url}/v2/")
    (text,) = (text for name, text in logs_of_open_servers() if str(registry.directory) in name)
    assert '"GET /v2/ HTTP/1.1" 200' in text


def test_a_server_that_was_left_keeps_its_log_and_nothing_else(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        process = registry.running
        digest = RegistryApi(registry.url).push_blob("team/app", b"a blob")
        assert registry.blob_file(digest).read_bytes() == b"a blob"
    assert process.exit_status() is not None
    assert not accepts(registry.port)
    assert sorted(file.name for file in registry.directory.iterdir()) == [
        "docker-registry.log",
        "registry.yml",
    ]
    with pytest.raises(RuntimeError, match="docker-registry is stopped"):
        _ = registry.running


def test_servers_see_nothing_of_the_environment_that_steers_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_HTTP_ADDR", "127.0.0.1:1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    seen = run(["env"], environment={"GIVEN": "1"}).stdout.splitlines()
    assert "GIVEN=1" in seen
    assert "LC_ALL=C.UTF-8" in seen
    assert not [line for line in seen if line.startswith(("REGISTRY_", "https_proxy"))]


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    # A zombie whose parent is gone waits for init.
    return "State:\tZ" not in status
