"""What can go wrong with a tree; :mod:`mount.tree.operations` has the table of error numbers."""


class TreeError(Exception):
    """Something about a tree; ``str()`` is one line."""


class NoSuchTree(TreeError):
    """No layer of this number is mounted, or its metadata has gone."""


class TreeUnusable(TreeError):
    """The layer's metadata is damaged, or not what the kernel has seen of it."""
