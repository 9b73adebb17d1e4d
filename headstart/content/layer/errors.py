"""Why a layer is not mounted."""


class LayerRefused(Exception):
    """A layer's bytes are hostile, damaged or beyond a cap; ``str()`` is one line that says which.

    The layer can still be pulled the ordinary way: the client's own checks decide then.
    """
