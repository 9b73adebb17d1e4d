"""Places as people write them."""

import re
from dataclasses import dataclass
from pathlib import Path

from headstart.content.errors import InvalidInput
from headstart.content.reference import ImageReference

UNDERSTOOD = (
    "write REGISTRY/REPOSITORY:TAG, oci:DIR[:TAG], docker-archive:FILE[:REF], or a path such as "
    "./DIR or ./FILE.tar"
)

_LAYOUT, _ARCHIVE = "oci:", "docker-archive:"
_PATH_STARTS = ("/", "./", "../", "~/")
_ARCHIVE_ENDS = (".tar", ".tar.gz", ".tgz")
# OCI image specification, annotations.md, "org.opencontainers.image.ref.name".
_NAME = re.compile(
    r"[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*"
    r"(?:/[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*)*"
)
_LONGEST_NAME = 255


@dataclass(frozen=True, slots=True)
class RegistryPlace:
    """An image in a registry, by tag or digest."""

    image: ImageReference

    def __str__(self) -> str:
        return str(self.image)


@dataclass(frozen=True, slots=True)
class LayoutPlace:
    """An image in an OCI layout on disk; without ``name`` the only one there."""

    directory: Path
    name: str | None

    def __str__(self) -> str:
        return f"{_LAYOUT}{self.directory}{f':{self.name}' if self.name is not None else ''}"


@dataclass(frozen=True, slots=True)
class ArchivePlace:
    """An image in an archive of ``docker save``; without ``image`` the only one there."""

    file: Path
    image: ImageReference | None

    def __str__(self) -> str:
        return f"{_ARCHIVE}{self.file}{f':{self.image}' if self.image is not None else ''}"


Place = RegistryPlace | LayoutPlace | ArchivePlace


def parse_place(text: str) -> Place:
    """Read a place. Raises InvalidInput.

    A path is what begins with ``/``, ``./``, ``../`` or ``~/``, or ends as archives do; it is an
    archive when a file is there or it ends so, else a layout. Only there the disk is looked at.
    """
    if not text.isprintable() or not text.strip():
        raise InvalidInput("place", text, UNDERSTOOD)
    if text.startswith(_LAYOUT):
        directory, colon, name = text.removeprefix(_LAYOUT).partition(":")
        return LayoutPlace(_path(text, directory), _name(text, name) if colon else None)
    if text.startswith(_ARCHIVE):
        file, colon, reference = text.removeprefix(_ARCHIVE).partition(":")
        return ArchivePlace(_path(text, file), _image(text, reference) if colon else None)
    if text.startswith(_PATH_STARTS) or text in (".", "..") or text.endswith(_ARCHIVE_ENDS):
        path = _path(text, text)
        is_archive = path.is_file() or (text.endswith(_ARCHIVE_ENDS) and not path.is_dir())
        return ArchivePlace(path, None) if is_archive else LayoutPlace(path, None)
    return RegistryPlace(_image(text, text))


def _path(text: str, path: str) -> Path:
    if not path:
        raise InvalidInput("place", text, f"it names no path; {UNDERSTOOD}")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InvalidInput("place", text, "there is no such user; write the path out") from None


def _name(text: str, name: str) -> str:
    if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        raise InvalidInput(
            "place", text, "write a tag of letters, digits and single separators behind oci:DIR:"
        )
    return name


def _image(text: str, reference: str) -> ImageReference:
    try:
        return ImageReference.parse(reference)
    except InvalidInput as error:
        wrong = f"as an image's name its {error.field} {error.value!r} is wrong"
        raise InvalidInput("place", text, f"{wrong} ({error.remedy}); {UNDERSTOOD}") from None
