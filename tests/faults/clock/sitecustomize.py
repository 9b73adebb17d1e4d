"""Shifts the wall clock of a process by HEADSTART_TEST_CLOCK seconds; monotonic clocks stay.

Python imports this module by itself where this directory is on PYTHONPATH.
"""

import datetime
import os
import time

_SHIFT = float(os.environ.get("HEADSTART_TEST_CLOCK", "0"))
_true_time, _true_time_ns = time.time, time.time_ns


class _Shifted(datetime.datetime):
    """``datetime`` whose ``now`` follows the shifted clock."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "_Shifted":
        return cls.fromtimestamp(time.time(), tz)


time.time = lambda: _true_time() + _SHIFT
time.time_ns = lambda: _true_time_ns() + int(_SHIFT * 1e9)
datetime.datetime = _Shifted  # type: ignore[misc]
