"""Writes EROFS images whose file contents lie on other devices: all that the kernel mounts."""

from headstart.content.erofs.device_geometry import DeviceGeometry
from headstart.content.erofs.image import build

__all__ = ["DeviceGeometry", "build"]
