"""Made images: sizes, kinds of content, the same bytes from the same seed."""

import tarfile
from pathlib import Path

from tests.parts.fixtures import LAYERS
from tests.parts.images import make_image
from tests.parts.layers import Content, Layer
from tests.parts.pattern import Pattern

MIB = 1 << 20


def test_pattern_is_the_same_read_in_pieces_and_at_any_offset() -> None:
    pattern = Pattern(3 * MIB + 100, seed=7)
    whole = b"".join(pattern.pieces())
    assert len(whole) == pattern.size
    for offset, length in [
        (0, 10),
        (MIB - 3, 9),
        (4095, 2 * MIB),
        (3 * MIB + 90, 50),
        (9 * MIB, 5),
    ]:
        assert pattern.read(offset, length) == whole[offset : offset + length]
    assert len({whole[at : at + 4096] for at in range(0, 3 * MIB, 4096)}) == 768
    assert Pattern(pattern.size, seed=8).digest() != pattern.digest()


def test_a_layer_is_a_tar_of_the_asked_size_that_compresses_as_asked(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", LAYERS)
    random, text, sparse = image.platform().layers
    for layer, blob in zip(LAYERS, (random, text, sparse), strict=True):
        with tarfile.open(image.blob(blob.digest)) as tar:
            assert max(member.size for member in tar) == layer.size
    assert random.size > LAYERS[0].size
    assert text.size < LAYERS[1].size / 5
    assert image.blob(sparse.digest).stat().st_blocks * 512 < sparse.size / 2


def test_images_of_one_seed_are_equal_and_of_others_share_no_layer(tmp_path: Path) -> None:
    layers = [Layer(1000), Layer(5000, Content.TEXT)]
    made = [make_image(tmp_path / str(n), layers, seed=n % 2) for n in range(3)]
    assert made[0].top == made[2].top
    assert not set(made[0].platform().layers) & set(made[1].platform().layers)
