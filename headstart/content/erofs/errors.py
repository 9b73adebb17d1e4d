"""What the format has no room for."""


class Inexpressible(Exception):
    """Something of one file that EROFS cannot say; ``str()`` does not name the file."""
