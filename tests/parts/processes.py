"""Processes of tests: started, waited for, measured and ended with everything that they started.

A process gets SIGTERM when the thread that started it ends, so that a killed test run leaves no
servers behind (``setpriv --pdeathsig``; prctl in a forked child warns where threads run). Start
long-lived ones from a thread that lives as long.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TAIL = 40
"""Lines of a log that go into an error text."""

_INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_",
    "TZ",
    "TERM",
    "TMPDIR",
    "PYTHON",
    "VIRTUAL_ENV",
)
_SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin")


class ProgramMissing(Exception):
    """A program is not installed; ``make test`` installs all of them."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not installed (make test installs it)")
        self.name = name


class ProcessFailed(Exception):
    """A process ended, answered too late or exited with another status than 0."""


def program(name: str) -> str:
    """Path of a program: beside this interpreter (``weed``), on PATH, in the sbin directories."""
    beside = str(Path(sys.executable).parent)
    path = os.pathsep.join([beside, os.environ.get("PATH", ""), *_SYSTEM_DIRECTORIES])
    found = shutil.which(name, path=path)
    if found is None:
        raise ProgramMissing(name)
    return found


def inherited_environment() -> dict[str, str]:
    """What of this environment servers and clients may see.

    The rest steers them behind a test's back: proxies, AWS_CA_BUNDLE, REGISTRY_STORAGE, ...
    """
    return {key: value for key, value in os.environ.items() if key.startswith(_INHERITED)}


class Process:
    """A running process, the leader of its own session, which writes its output to a file."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        """Start ``arguments`` (the first one is looked up); output is appended to ``log``.

        ``environment`` is added to :func:`inherited_environment`.
        """
        self.name = Path(arguments[0]).name
        self.log = log
        leader = [program("setpriv"), "--pdeathsig", "TERM", "--", program(str(arguments[0]))]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*leader, *map(str, arguments[1:])],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**inherited_environment(), **(environment or {})},
                cwd=directory,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_status(self) -> int | None:
        """None while it runs; minus the signal's number when a signal ended it."""
        return self._process.poll()

    def tail(self, lines: int = TAIL) -> str:
        """The last lines of the log."""
        return tail(self.log, lines)

    def wait_until(self, ready: Callable[[], bool], deadline: float) -> None:
        """Return when ``ready`` says so; ProcessFailed with the log after ``deadline`` seconds."""
        end = time.monotonic() + deadline
        while not ready():
            status = self.exit_status()
            if status is not None:
                raise ProcessFailed(f"{self.name} ended with status {status}:\n{self.tail()}")
            if time.monotonic() > end:
                raise ProcessFailed(f"{self.name} not ready after {deadline} s:\n{self.tail()}")
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        self._process.send_signal(number)

    def kill(self) -> int:
        """SIGKILL to the whole group at once; returns the exit status."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return self._process.wait()

    def stop(self, grace: float = 5.0) -> int:
        """SIGTERM, after ``grace`` seconds SIGKILL to the whole group; returns the exit status."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.terminate()
            self._process.wait(grace)
        return self.kill()

    def peak_memory(self) -> int:
        """Bytes: the sum of VmHWM of the process and its descendants that live now."""
        return sum(map(peak_memory, tree(self.pid)))

    def descriptors(self) -> int:
        """Open file descriptors of the process and its descendants that live now."""
        return sum(map(descriptors, tree(self.pid)))

    def cpu_seconds(self) -> float:
        """User and system time of the process and its descendants, ended children included."""
        return sum(map(cpu_seconds, tree(self.pid)))


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended: its output, and seconds by the wall clock."""

    stdout: str
    stderr: str
    seconds: float


def run(
    arguments: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    deadline: float = 60.0,
) -> Completed:
    """Run a command to its end; ProcessFailed with its output when it fails or takes too long."""
    command = [program(str(arguments[0])), *map(str, arguments[1:])]
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**inherited_environment(), **(environment or {})},
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        text = f"{' '.join(command)}: killed after {deadline} s"
        raise ProcessFailed(f"{text}\n{stdout}{stderr}") from None
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    seconds = time.monotonic() - started
    if process.returncode != 0:
        text = f"{' '.join(command)}: exit status {process.returncode}"
        raise ProcessFailed(f"{text}\n{stdout}{stderr}")
    return Completed(stdout, stderr, seconds)


def tail(log: Path, lines: int = TAIL) -> str:
    """The last lines of a file; empty where there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 400 * lines))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])


def tree(pid: int) -> list[int]:
    """``pid`` and all its living descendants."""
    found = [pid]
    for parent in found:
        found.extend(_children(parent))
    return found


def peak_memory(pid: int) -> int:
    """Bytes: VmHWM of one process; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # A zombie has no VmHWM.
    sizes = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(next(sizes, "0"))


def descriptors(pid: int) -> int:
    """Open file descriptors of one process; 0 when it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def cpu_seconds(pid: int) -> float:
    """User and system seconds of one process and its ended children; 0 when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    # Fields 14 to 17 (proc(5)) counted after the name in brackets, which may hold blanks.
    fields = stat.rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> Iterator[int]:
    # One file a thread: a child belongs to the thread that forked it.
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield from map(int, thread.read_text().split())
