"""The launcher with real, tiny children."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import proxy.launcher as launcher_module

ROOT = Path(__file__).resolve().parents[2]
DRAIN_SECONDS = 1.0

# Writes its pid, dies with the launcher, ends at SIGTERM unless told to hold on.
CHILD = """
import os, signal, sys, time
from pathlib import Path
from proxy.child import die_with_parent, launcher_process_id
die_with_parent(launcher_process_id())
name, directory, on_term = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
def stop(number, frame):
    with open(directory / "stopped", "a") as log:
        log.write(name + "\\n")
    if on_term == "end":
        raise SystemExit(0)
signal.signal(signal.SIGTERM, stop)
temporary = directory / f".{name}"
temporary.write_text(str(os.getpid()))
temporary.rename(directory / name)
while True:
    time.sleep(60)
"""


def wait_until(condition: Callable[[], object], what: str, seconds: float = 8.0) -> None:
    """Poll until ``condition`` is true; fail the test when it never is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)


def child(directory: Path, name: str, on_term: str = "end") -> list[str]:
    """The command line of a child that lives until it is told to end."""
    return [sys.executable, "-c", CHILD, name, str(directory), on_term]


@contextmanager
def launched(
    commands: dict[str, list[str]], drain_seconds: float = DRAIN_SECONDS
) -> Iterator[subprocess.Popen[str]]:
    """A launcher in a process group of its own; killed at the end whatever happened."""
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy.launcher", str(drain_seconds), json.dumps(commands)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Wait for the launcher; return its exit status and the lines it printed."""
    _, errors = process.communicate(timeout=15)
    return process.returncode, errors.splitlines()


def pid_of(path: Path) -> int:
    """The process id that a child wrote; waits for it."""
    wait_until(path.exists, f"{path.name} starts")
    return int(path.read_text())


def gone(pid: int) -> bool:
    """Whether no process has this id any more, or only a zombie is left of it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def test_f42_sigterm_stops_the_last_started_first_and_ends_with_0(tmp_path: Path) -> None:
    commands = {name: child(tmp_path, name) for name in ("filler", "mirror")}
    with launched(commands) as launcher:
        pids = [pid_of(tmp_path / name) for name in commands]
        launcher.send_signal(signal.SIGTERM)
        status, lines = finish(launcher)
    assert status == 0
    assert lines == ["headstart: SIGTERM: stopping"]
    assert (tmp_path / "stopped").read_text().split() == ["mirror", "filler"]
    assert all(gone(pid) for pid in pids)


def test_f42_what_does_not_drain_in_time_is_killed(tmp_path: Path) -> None:
    commands = {"filler": child(tmp_path, "filler"), "mirror": child(tmp_path, "mirror", "hold")}
    with launched(commands) as launcher:
        mirror = pid_of(tmp_path / "mirror")
        filler = pid_of(tmp_path / "filler")
        asked = time.monotonic()
        launcher.send_signal(signal.SIGTERM)
        status, lines = finish(launcher)
        took = time.monotonic() - asked
    assert status == 0
    assert DRAIN_SECONDS <= took < DRAIN_SECONDS + 1.5
    assert lines[-1] == "headstart: mirror had not ended within 1 s of draining: SIGKILL"
    assert (tmp_path / "stopped").read_text().split() == ["mirror", "filler"]
    assert gone(mirror) and gone(filler)


def test_the_terminals_interrupt_is_passed_on_in_order(tmp_path: Path) -> None:
    commands = {name: child(tmp_path, name) for name in ("filler", "mirror")}
    with launched(commands) as launcher:
        for name in commands:
            pid_of(tmp_path / name)
        os.killpg(launcher.pid, signal.SIGINT)
        status, lines = finish(launcher)
    assert status == 0
    assert lines == ["headstart: SIGINT: stopping"]
    assert (tmp_path / "stopped").read_text().split() == ["mirror", "filler"]


def test_a_second_interrupt_does_not_wait_for_the_drain(tmp_path: Path) -> None:
    with launched({"mirror": child(tmp_path, "mirror", "hold")}, drain_seconds=60) as launcher:
        pid_of(tmp_path / "mirror")
        launcher.send_signal(signal.SIGINT)
        wait_until((tmp_path / "stopped").exists, "the mirror is asked to end")
        asked = time.monotonic()
        launcher.send_signal(signal.SIGINT)
        status, _ = finish(launcher)
    assert status == 0
    assert time.monotonic() - asked < 2.0


def test_a_dead_child_starts_again_and_the_other_is_left_alone(tmp_path: Path) -> None:
    commands = {name: child(tmp_path, name) for name in ("filler", "mirror")}
    with launched(commands) as launcher:
        mirror = pid_of(tmp_path / "mirror")
        first = pid_of(tmp_path / "filler")
        (tmp_path / "filler").unlink()
        died = time.monotonic()
        os.kill(first, signal.SIGKILL)
        second = pid_of(tmp_path / "filler")
        took = time.monotonic() - died
        assert second != first
        assert not gone(mirror)
        launcher.send_signal(signal.SIGTERM)
        status, lines = finish(launcher)
    assert status == 0
    assert took < 3.0
    assert lines[0].startswith("headstart: filler died by SIGKILL after ")
    assert lines[0].endswith(" s; starting it again in 0.1 s")


def test_the_pause_before_a_restart_doubles(tmp_path: Path) -> None:
    script = f"import time; open({str(tmp_path / 'starts')!r}, 'a').write('x'); raise SystemExit(1)"
    with launched({"filler": [sys.executable, "-c", script]}) as launcher:
        starts = tmp_path / "starts"
        wait_until(lambda: starts.exists() and len(starts.read_text()) >= 4, "four starts")
        launcher.send_signal(signal.SIGTERM)
        status, lines = finish(launcher)
    assert status == 0
    pauses = [line.rsplit(" in ", 1)[1] for line in lines if "starting it again" in line]
    assert pauses[:3] == ["0.1 s", "0.2 s", "0.4 s"]
    assert "ended with exit status 1 after" in lines[0]


def test_a_child_that_has_lived_for_seconds_starts_again_without_a_long_pause() -> None:
    """Killed every few seconds it is no child that cannot run: whoever reads waits for it."""
    child = launcher_module._Child("filler", ["true"])
    killed = signal.SIGKILL.value  # as wait(2) says it
    for _ in range(3):
        child.started = time.monotonic()
        launcher_module._plan_restart(child, killed)
    assert child.pause == 0.8
    child.started = time.monotonic() - 2.5
    launcher_module._plan_restart(child, killed)
    assert child.pause == 0.2
    assert child.restart_at is not None
    assert child.restart_at - time.monotonic() <= 0.1


def test_a_child_that_ends_with_2_ends_all_with_2(tmp_path: Path) -> None:
    refused = "import sys; sys.stderr.write('port 5050 is in use\\n'); raise SystemExit(2)"
    commands = {"filler": child(tmp_path, "filler"), "mirror": [sys.executable, "-c", refused]}
    with launched(commands) as launcher:
        status, lines = finish(launcher)
    assert status == 2
    assert lines == ["port 5050 is in use"]
    if (tmp_path / "filler").exists():
        assert gone(int((tmp_path / "filler").read_text()))


def test_a_command_that_is_not_there_is_one_line_and_2(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    with launched({"mirror": [absent]}) as launcher:
        status, lines = finish(launcher)
    assert status == 2
    expected = f"headstart: mirror: {absent}: No such file or directory; it cannot be started"
    assert lines == [expected]


def test_children_die_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    commands = {name: child(tmp_path, name) for name in ("filler", "mirror")}
    with launched(commands) as launcher:
        pids = [pid_of(tmp_path / name) for name in commands]
        launcher.kill()
        launcher.wait()
        wait_until(lambda: all(gone(pid) for pid in pids), "the children die", seconds=3)


def test_a_child_whose_parent_is_another_process_does_not_start(tmp_path: Path) -> None:
    script = "from proxy.child import die_with_parent; die_with_parent(1); print('started')"
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=variables, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == "the launcher has gone; nothing was started\n"


def test_a_process_started_by_hand_is_not_tied_to_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from proxy.child import LAUNCHER_VARIABLE, die_with_parent, launcher_process_id

    monkeypatch.delenv(LAUNCHER_VARIABLE, raising=False)
    assert launcher_process_id() is None
    die_with_parent(launcher_process_id())
    death_signal = ctypes.c_int(-1)
    get_death_signal = 2  # PR_GET_PDEATHSIG
    assert ctypes.CDLL(None).prctl(get_death_signal, ctypes.byref(death_signal), 0, 0, 0) == 0
    assert death_signal.value == 0


def test_the_launcher_stays_small(tmp_path: Path) -> None:
    with launched({"filler": child(tmp_path, "filler")}) as launcher:
        pid_of(tmp_path / "filler")
        status = Path(f"/proc/{launcher.pid}/status").read_text()
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    assert int(peak) < 20 * 1024, f"{peak} KiB"


def test_a_process_becomes_the_launcher_with_its_own_id(tmp_path: Path) -> None:
    commands = {"filler": child(tmp_path, "filler")}
    script = (
        "import json, os, sys\n"
        "from proxy.launcher import replace_process\n"
        f"open({str(tmp_path / 'before')!r}, 'w').write(str(os.getpid()))\n"
        f"replace_process(json.loads({json.dumps(json.dumps(commands))}), drain_seconds=1)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    try:
        pid = pid_of(tmp_path / "filler")
        parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]
        assert parent == (tmp_path / "before").read_text() == str(process.pid)
        process.terminate()
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        process.wait()
