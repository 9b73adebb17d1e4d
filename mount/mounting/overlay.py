"""overlayfs: layers on top of each other, with or without a directory for changes."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from mount.mounting import system_calls

_ESCAPED = ("\\", ":", ",")
"""What has a meaning in overlayfs options (Documentation/filesystems/overlayfs.rst)."""


def distinct(lower: Sequence[Path]) -> list[Path]:
    """The directories ``lower``, the top one first, each once, as overlayfs wants it.

    Images may have a layer twice. The upper one shows all that the lower one would: every file of
    it is there already, and what lies between hides nothing of it.
    """
    return list(dict.fromkeys(lower))


def mount_overlay(
    directory: Path,
    lower: Sequence[Path],
    target: Path,
    flags: int,
    *,
    upper: Path | None = None,
    work: Path | None = None,
) -> None:
    """Mount the directories ``lower``, the top one first, at ``target``.

    They all lie in ``directory``, from which they are named relatively: so 127 of them fit the
    4095 bytes that mount(2) takes. Without ``upper`` (and ``work``, an empty directory beside it)
    it is read-only and takes two directories at least. Raises OSError.
    """
    names = [str(path.relative_to(directory)) for path in lower]
    options = [f"lowerdir={':'.join(map(_escaped, names))}"]
    if upper is not None and work is not None:
        options += ["index=off", f"upperdir={_escaped(upper)}", f"workdir={_escaped(work)}"]
    else:
        flags |= system_calls.MS_RDONLY
    failures: list[OSError] = []

    def call() -> None:
        try:
            system_calls.separate_working_directory()
            os.chdir(directory)
            system_calls.mount("overlay", target.absolute(), "overlay", flags, ",".join(options))
        except OSError as error:
            failures.append(error)

    # The working directory belongs to the process: a thread that has its own is used once.
    thread = threading.Thread(target=call, name="mount-overlay")
    thread.start()
    thread.join()
    for failure in failures:
        raise failure


def _escaped(path: str | Path) -> str:
    text = str(path)
    for sign in _ESCAPED:
        text = text.replace(sign, f"\\{sign}")
    return text
