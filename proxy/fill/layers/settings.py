"""What the configuration says of layer images."""

from dataclasses import dataclass

from proxy.fill.layers.streaming import BackgroundRate, PolicyName


@dataclass(frozen=True, slots=True)
class LayerSettings:
    """What is kept (``cache.keep``), sizes in bytes, and the section ``prefetch``."""

    keep: str
    window: int
    connections: int
    extent_size: int
    policy: PolicyName = "auto"
    background: BackgroundRate = "auto"
