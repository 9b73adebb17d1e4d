"""A record of every range for plots: JSON lines in the file that HEADSTART_TRACE names."""

import json
import logging
import os
import time
from typing import TextIO

logger = logging.getLogger(__name__)

VARIABLE = "HEADSTART_TRACE"


class Trace:
    """Appends ``start`` and ``end`` events with monotonic seconds; does nothing without a file."""

    def __init__(self, path: str | None = None) -> None:
        """``path`` None: what the environment names, if anything."""
        named = path or os.environ.get(VARIABLE)
        self._file: TextIO | None = None
        if named:
            descriptor = os.open(
                named, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
            )
            self._file = os.fdopen(descriptor, "a", encoding="utf-8", buffering=1)

    @property
    def enabled(self) -> bool:
        """Whether anybody wants the events."""
        return self._file is not None

    def write(self, event: str, **fields: object) -> None:
        """One event."""
        if self._file is not None:
            record = {"at": time.monotonic(), "event": event, **fields}
            try:
                self._file.write(json.dumps(record) + "\n")
            except OSError as error:
                logger.warning("trace: %s; it ends here", error)
                self._file = None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
