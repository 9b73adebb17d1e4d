"""Maps and files that end with a context, for properties that need many of them."""

import tempfile
from pathlib import Path

from headstart.store.extent_map import BlobMap
from headstart.store.geometry import Geometry
from tests.store.stored_objects import create_maps


class TemporaryMaps:
    """Empty maps of an object in a directory of their own."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._directory = tempfile.TemporaryDirectory()

    def __enter__(self) -> BlobMap:
        self._maps = create_maps(Path(self._directory.name), self._geometry)
        return self._maps

    def __exit__(self, *_: object) -> None:
        self._maps.close()
        self._directory.cleanup()
