"""Places as people write them: what is understood, and what is said of the rest."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.content.errors import InvalidInput
from headstart.content.reference import ImageReference
from headstart.convert.places.naming import (
    ArchivePlace,
    LayoutPlace,
    RegistryPlace,
    parse_place,
)

DIGEST = f"sha256:{'a' * 64}"
REFERENCE = st.sampled_from(
    ["alpine", "team/app:1.2", "localhost:5000/a/b", f"ghcr.io/a@{DIGEST}", "a.b:1/c:t"]
)
FILE_NAME = st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True)
PATH = st.lists(FILE_NAME, min_size=1, max_size=4).map("/".join)
NAME = st.from_regex(r"[A-Za-z0-9]{1,6}([-._:@+/][A-Za-z0-9]{1,6}){0,4}", fullmatch=True)


@given(REFERENCE)
def test_what_is_no_path_and_has_no_prefix_is_an_images_name(reference: str) -> None:
    assert parse_place(reference) == RegistryPlace(ImageReference.parse(reference))


@given(PATH, st.none() | NAME)
def test_a_layout_has_a_directory_and_perhaps_a_name(directory: str, name: str | None) -> None:
    text = f"oci:{directory}{f':{name}' if name is not None else ''}"
    assert parse_place(text) == LayoutPlace(Path(directory), name)


@given(PATH, st.none() | REFERENCE)
def test_an_archive_has_a_file_and_perhaps_a_reference(file: str, reference: str | None) -> None:
    text = f"docker-archive:{file}{f':{reference}' if reference is not None else ''}"
    image = ImageReference.parse(reference) if reference is not None else None
    assert parse_place(text) == ArchivePlace(Path(file), image)


@given(st.text(max_size=60) | st.builds("{}{}".format, st.sampled_from(["oci:", "./"]), st.text()))
def test_any_text_is_a_place_that_can_be_written_again_or_an_error_of_one_line(text: str) -> None:
    try:
        place = parse_place(text)
    except InvalidInput as error:
        assert "\n" not in str(error)
        assert error.field == "place"
    else:
        assert text.isprintable()
        if not str(place).partition(":")[2].startswith("~") and str(place).count(":") <= 1:
            assert parse_place(str(place)) == place


@pytest.mark.parametrize("start", ["{}/", "./", "../", "./a:b/"])
@pytest.mark.parametrize("name", ["image", "library/app:1", "x.zip"])
def test_a_path_that_is_not_there_yet_is_a_layout(start: str, name: str, tmp_path: Path) -> None:
    text = start.format(tmp_path) + name
    assert parse_place(text) == LayoutPlace(Path(text), None)


@pytest.mark.parametrize("name", ["image.tar", "image.tar.gz", "a/b.tgz", "/tmp/none/b.tar"])
def test_a_path_that_ends_as_archives_do_is_one(name: str) -> None:
    assert parse_place(name) == ArchivePlace(Path(name), None)


def test_what_is_on_the_disk_decides(tmp_path: Path) -> None:
    (tmp_path / "layout.tar").mkdir()
    (tmp_path / "saved").touch()
    assert parse_place(f"{tmp_path}/layout.tar") == LayoutPlace(tmp_path / "layout.tar", None)
    assert parse_place(f"{tmp_path}/saved") == ArchivePlace(tmp_path / "saved", None)


def test_a_home_directory_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert parse_place("~/images") == LayoutPlace(Path("/home/somebody/images"), None)
    assert parse_place("oci:~/images:a") == LayoutPlace(Path("/home/somebody/images"), "a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "docker-archive:FILE"),
        ("  ", "docker-archive:FILE"),
        ("oci:", "names no path"),
        ("oci::latest", "names no path"),
        ("docker-archive:", "names no path"),
        ("oci:dir:", "write a tag"),
        ("oci:dir:a b", "write a tag"),
        ("oci:dir:../x", "write a tag"),
        (f"oci:dir:{'a' * 256}", "write a tag"),
        ("docker-archive:a.tar:UPPER", "its repository 'library/UPPER' is wrong"),
        ("docker://alpine", "write REGISTRY/REPOSITORY:TAG"),
        ("Alpine", "lower-case letters"),
        ("alpine:la test", "its tag"),
        ("alpine@sha256:short", "its digest"),
        ("./a\nb", "docker-archive:FILE"),
    ],
)
def test_an_error_names_the_value_and_says_what_is_understood(text: str, said: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        parse_place(text)
    assert refusal.value.field == "place"
    assert refusal.value.value == (text if len(text) <= 100 else text[:97] + "...")
    assert said in str(refusal.value)
