"""Why a layer or an image is not mounted.

::

    MountError
      MountRefused       the kernel refuses a mount; the text names call, path and reason
      ModeUnavailable    no way of mounting works here, or not the configured one
      FilesMissing       the files of a layer image must be asked of the filler again
"""


class MountError(Exception):
    """Something about a mount; ``str()`` is one line."""


class MountRefused(MountError):
    """The kernel refuses a mount."""


class ModeUnavailable(MountError):
    """No way of mounting works on this machine, or not the configured one."""


class FilesMissing(MountError):
    """The files that a layer was mounted from are not known any more, or gone."""
