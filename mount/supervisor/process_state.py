"""Whether a process runs, as /proc says it (proc_pid_stat(5))."""

from pathlib import Path


def has_ended(pid: int) -> bool:
    """Whether its main thread has ended, or there is no such process.

    Its end need not be told by a pidfd or wait(2) then: that waits for its last thread, and one
    that has asked for something which its own process was to answer waits until another one does.
    """
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return line.rpartition(")")[2].split()[0] in "ZX"
