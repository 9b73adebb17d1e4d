"""What can go wrong with a device file; ``operations.py`` has the table of error numbers.

::

    DeviceError
      NoSuchDevice    no such file, or no such stripe
      ReadFailed      the bytes could not be had; the reason is in the log
"""


class DeviceError(Exception):
    """Something about a device file; ``str()`` is one line."""


class NoSuchDevice(DeviceError):
    """The table has no such data device, or it has fewer stripes."""


class ReadFailed(DeviceError):
    """Not all of the bytes could be had."""
