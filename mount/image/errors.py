"""What a person who mounts an image can be told.

::

    ImageError             one line with what, the value and the remedy
      ImageUnusable        the registry has it, but it cannot be mounted
      DirectoryUnusable    where it was to be mounted, or is not mounted
      FillerMissing        no filler runs, and none could be started
      PathMissing          a path that the image does not have
"""


class ImageError(Exception):
    """One line with what, the value and the remedy."""


class ImageUnusable(ImageError):
    """The registry has it, but it cannot be mounted."""


class DirectoryUnusable(ImageError):
    """Where it was to be mounted, or is not mounted."""


class FillerMissing(ImageError):
    """No filler runs, and none could be started."""


class PathMissing(ImageError):
    """A path that the image does not have, or not as a file."""
