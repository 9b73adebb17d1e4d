"""The platform of this node, as images call it."""

import os

from headstart.content.manifest import Platform

_ARCHITECTURES = {
    "aarch64": "arm64",
    "armv6l": "arm/v6",
    "armv7l": "arm/v7",
    "i386": "386",
    "i686": "386",
    "loongarch64": "loong64",
    "x86_64": "amd64",
}
"""Machine names of Linux (uname) and what images call them (GOARCH), where they differ."""


def own_platform(machine: str | None = None) -> Platform:
    """The platform of this node; ``machine`` as uname says it."""
    machine = machine or os.uname().machine
    return Platform.parse(f"linux/{_ARCHITECTURES.get(machine, machine)}")
