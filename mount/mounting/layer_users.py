"""Who uses which mounted layer: an empty file a user, so that nobody unmounts what another needs.

Processes come and go; a layer is unmounted when its last user has said that it is done with it.
"""

import shutil
from pathlib import Path


class LayerUsers:
    """``DIRECTORY/NUMBER/USER``. A user is the snapshotter, or an image that a person mounted."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError when the directory cannot be made."""
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def add(self, number: int, user: str) -> None:
        """Note a user; nothing changes when it is noted already. Raises OSError."""
        (self._directory / str(number)).mkdir(exist_ok=True, mode=0o700)
        (self._directory / str(number) / user).touch(mode=0o600)

    def remove(self, number: int, user: str) -> None:
        """Forget a user; nothing changes when it is not noted. Raises OSError."""
        (self._directory / str(number) / user).unlink(missing_ok=True)

    def of(self, number: int) -> set[str]:
        """The users of one layer."""
        try:
            return {path.name for path in (self._directory / str(number)).iterdir()}
        except FileNotFoundError:
            return set()

    def used_by(self, user: str) -> list[int]:
        """The layers that somebody uses, ascending."""
        return sorted(int(path.parent.name) for path in self._directory.glob(f"*/{user}"))

    def forget(self, number: int) -> None:
        """Forget the layer. Raises OSError."""
        shutil.rmtree(self._directory / str(number), ignore_errors=True)
