"""What the configuration says of layer images."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerSettings:
    """What is kept (``cache.keep``), and sizes in bytes."""

    keep: str
    window: int
    connections: int
    extent_size: int
