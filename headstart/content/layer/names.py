"""Names inside a layer: cleaned as containerd cleans them, never out of the layer."""

from headstart.content.layer.caps import LayerCaps
from headstart.content.layer.errors import LayerRefused

_MOST_SHOWN = 120


def shown(name: bytes) -> str:
    """A bounded, printable repetition of a name, for one line of text."""
    text = repr(name[:_MOST_SHOWN].decode("utf-8", "backslashreplace"))
    return text if len(name) <= _MOST_SHOWN else f"{text[:-1]}...'"


def clean(name: bytes, caps: LayerCaps) -> bytes:
    """The path from the root, without ``.``, ``..`` or needless slashes; empty for the root.

    A leading slash means the root too. Raises LayerRefused for a path that leaves the root, has a
    NUL or is over a cap.
    """
    path = (name[2:] if name[:2] == b"./" else name).rstrip(b"/")
    if path[:1] in (b"", b".", b"/") or b"/." in path or b"//" in path:
        path = _walked(name)
    if b"\0" in path:
        raise LayerRefused(f"the name {shown(name)} has a NUL")
    if len(path) > caps.path_bytes:
        raise LayerRefused(f"the path {shown(path)} is longer than {caps.path_bytes} bytes")
    if path.count(b"/") >= caps.depth:
        raise LayerRefused(f"the path {shown(path)} is deeper than {caps.depth} directories")
    if len(path) > caps.name_bytes:
        for part in path.split(b"/"):
            if len(part) > caps.name_bytes:
                raise LayerRefused(f"the name {shown(part)} is longer than {caps.name_bytes} bytes")
    return path


def _walked(name: bytes) -> bytes:
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise LayerRefused(f"the path {shown(name)} leaves the layer")
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)
