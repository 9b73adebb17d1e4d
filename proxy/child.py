"""What a child of the launcher does first: tie its life to the launcher's, and its umask."""

import ctypes
import os
import signal

LAUNCHER_VARIABLE = "HEADSTART_LAUNCHER_PID"
"""Environment variable in which the launcher tells its children its process id."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


_UMASK = 0o027


def keep_private() -> None:
    """What this process makes is for its user, and its group to read: pulls may need passwords."""
    os.umask(_UMASK)


def launcher_process_id() -> int | None:
    """The process id of the launcher that started this process; None when started by hand."""
    text = os.environ.get(LAUNCHER_VARIABLE, "")
    return int(text) if text.isdecimal() else None


def die_with_parent(expected_parent_pid: int | None) -> None:
    """Ask the kernel for SIGKILL when the parent dies; None leaves the process on its own.

    Call it in the main thread before anything else. Raises ``SystemExit`` when the parent has
    died already, OSError when the kernel refuses.
    """
    if expected_parent_pid is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_PDEATHSIG): {os.strerror(error)}")
    # The parent may have died before prctl: then no signal comes any more.
    if os.getppid() != expected_parent_pid:
        raise SystemExit("the launcher has gone; nothing was started")
