"""Looking into an image: nothing in it leads out of it, or steers a terminal."""

import io
import os
import stat
from pathlib import Path

import pytest

from mount.image.errors import PathMissing
from mount.image.inside import copy_file, listing


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A directory that stands for a mounted image, beside a file that is none of it."""
    (tmp_path / "secret").write_text("of this machine")
    made = tmp_path / "image"
    (made / "etc").mkdir(parents=True)
    (made / "etc" / "name").write_text("inside")
    (made / "absolute").symlink_to("/etc/name")
    (made / "upwards").symlink_to("../../../../etc/name")
    (made / "out").symlink_to(tmp_path / "secret")
    (made / "up").symlink_to("../secret")
    (made / "directory-link").symlink_to("/etc")
    (made / "loop").symlink_to("loop")
    os.mkfifo(made / "fifo")
    return made


def read(image: Path, path: str) -> str:
    output = io.BytesIO()
    copy_file(image, path, output)
    return output.getvalue().decode()


INSIDE = (
    "etc/name",
    "/etc/name",
    "//etc/../etc/name",
    "../etc/name",
    "absolute",
    "upwards",
    "directory-link/name",
    "/../../directory-link/../etc/name",
)


@pytest.mark.parametrize("path", INSIDE)
def test_paths_are_those_of_the_image(image: Path, path: str) -> None:
    assert read(image, path) == "inside"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("out", "no such file"),
        ("up", "no such file"),
        ("../secret", "no such file"),
        ("loop", "symbolic links"),
        ("etc/name/below", "not a directory"),
        ("x" * 300, "too long"),
        ("etc", "is a directory"),
        ("/", "is a directory"),
        ("", "is a directory"),
        ("fifo", "no regular file"),
    ],
)
def test_what_is_no_file_of_the_image_is_not_read(image: Path, path: str, reason: str) -> None:
    with pytest.raises(PathMissing, match=reason) as missing:
        read(image, path)
    assert str(missing.value).startswith(f"{path}: ")


def test_a_directory_is_listed_by_name(image: Path) -> None:
    names = ["absolute", "directory-link", "etc", "fifo", "loop", "out", "up", "upwards"]
    assert [each.name for each in listing(image, "/")] == names
    assert [each.name for each in listing(image, "etc")] == ["name"]
    assert [each.name for each in listing(image, "directory-link/")] == ["name"]
    (image / "empty").mkdir()
    assert listing(image, "empty") == []


def test_what_is_no_directory_is_listed_itself(image: Path) -> None:
    (name,) = listing(image, "etc/name")
    assert (name.name, name.size, stat.S_ISREG(name.mode)) == ("etc/name", 6, True)
    (fifo,) = listing(image, "fifo")
    assert stat.S_ISFIFO(fifo.mode)
    (link,) = listing(image, "out")
    assert stat.S_ISLNK(link.mode) and link.target == str(image.parent / "secret")
    with pytest.raises(PathMissing, match="no such file"):
        listing(image, "out/")


def test_a_line_says_what_ls_says(image: Path) -> None:
    os.utime(image / "etc" / "name", (0, 0))
    os.chown(image / "etc" / "name", 12, 34)
    (image / "etc" / "name").chmod(0o4751)
    (listed,) = listing(image, "etc")
    assert str(listed).split() == ["-rwsr-x--x", "12:34", "6", "1970-01-01", "00:00", "name"]
    (link,) = listing(image, "up")
    assert str(link).endswith("up -> ../secret")


def test_names_cannot_steer_a_terminal(image: Path) -> None:
    odd = b"\x1b[2Jred\nline\xff"
    with open(os.fsencode(image / "etc") + b"/" + odd, "wb"):
        pass
    found = next(each for each in listing(image, "etc") if each.name != "name")
    assert "\\x1b[2Jred\\nline\\xff" in str(found)
    assert found.as_json()["name"] == "\\x1b[2Jred\\nline\\xff"
