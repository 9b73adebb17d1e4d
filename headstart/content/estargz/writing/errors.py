"""Why a layer stays as it is."""


class NotConvertible(Exception):
    """A good layer that would not show the same as eStargz; ``str()`` is one line that says why."""
