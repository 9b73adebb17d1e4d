"""What the annotations of a layer announce of its TOC."""

import pytest

from headstart.content.digest import Digest
from headstart.content.estargz.announced import TOC_DIGEST, announced_toc
from headstart.content.estargz.footer import TocLocation
from headstart.content.layer.errors import LayerRefused

ONE = Digest.of(b"one")
OTHER = Digest.of(b"other")
NEW = "io.github.containers.zstd-chunked."
OLD = "io.containers.zstd-chunked."
SIZE = 10_213_766
POSITION = "10203783:9935:34538:1"


def test_a_layer_without_annotations_is_an_ordinary_one() -> None:
    assert announced_toc({}, SIZE) is None
    assert announced_toc({"io.containers.estargz.uncompressed-size": "5"}, SIZE) is None


def test_estargz_announces_the_digest_of_the_json() -> None:
    announced = announced_toc({TOC_DIGEST: str(ONE)}, SIZE)
    assert announced is not None
    assert (announced.json_digest, announced.compressed_digest) == (ONE, None)
    assert announced.location is None


@pytest.mark.parametrize("prefix", [NEW, OLD])
def test_zstd_chunked_announces_the_compressed_toc_and_its_place(prefix: str) -> None:
    annotations = {prefix + "manifest-checksum": str(ONE), prefix + "manifest-position": POSITION}
    announced = announced_toc(annotations, SIZE)
    assert announced is not None
    assert (announced.json_digest, announced.compressed_digest) == (None, ONE)
    assert announced.location == TocLocation("zstd", 10_203_783, 9935, SIZE, 34538)


def test_both_digests_are_kept_where_both_are_announced() -> None:
    annotations = {
        TOC_DIGEST: str(OTHER),
        OLD + "manifest-checksum": str(ONE),
        OLD + "manifest-position": POSITION,
    }
    announced = announced_toc(annotations, SIZE)
    assert announced is not None
    assert (announced.json_digest, announced.compressed_digest) == (OTHER, ONE)


def test_a_place_without_digest_announces_nothing() -> None:
    assert announced_toc({NEW + "manifest-position": POSITION}, SIZE) is None
    assert announced_toc({NEW + "manifest-checksum": str(ONE)}, SIZE) is None


@pytest.mark.parametrize("text", ["", "sha256:abc", "md5:" + "0" * 32, str(ONE).upper()])
def test_a_digest_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(LayerRefused, match="is no digest"):
        announced_toc({TOC_DIGEST: text}, SIZE)


@pytest.mark.parametrize(
    "position",
    [
        "",
        "1:2:3",
        "1:2:3:4:5",
        "-1:2:3:1",
        "10203783:9935:34538:2",
        "10203783:9935:34538:1 ",
        "10203783:0:34538:1",
        "7:9935:34538:1",
        f"{SIZE}:1:1:1",
        "9999999999999999999:9935:34538:1",
        "10203783:9935:9999999999:1",
    ],
)
def test_a_place_that_cannot_be_is_refused(position: str) -> None:
    annotations = {NEW + "manifest-checksum": str(ONE), NEW + "manifest-position": position}
    with pytest.raises(LayerRefused):
        announced_toc(annotations, SIZE)
