"""How much a layer may ask of this node; what is over it is refused, never cut."""

from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class LayerCaps:
    """Bounds on one layer; narrow, since a refused one can still be pulled the ordinary way.

    ``entries`` counts files of the tree: a file of it costs the filler some 600 bytes of memory and
    the image as many again while it is written; the largest layers in use (conda, node_modules)
    have a few hundred thousand. Directories that no entry names, only implies, count too.
    ``metadata_bytes`` is what all names, targets and extended attributes may have together;
    128 bytes a file is several times what layers have. ``depth`` is of directories; nested
    node_modules reach some 60.

    Linux itself: ``name_bytes`` NAME_MAX; ``path_bytes`` and ``target_bytes`` PATH_MAX without the
    NUL (linux/limits.h). EROFS: ``xattr_name_bytes`` and ``xattr_value_bytes`` what the fields
    e_name_len and e_value_size hold; ``xattr_bytes``, names and values of one file, what fits
    i_xattr_icount whatever their number (linux/fs/erofs/erofs_fs.h).

    ``extension_bytes`` is the payload of one PAX header or GNU long name, which is held in memory;
    the largest valid one has a path, a target and ``xattr_bytes``.

    ``total_bytes`` are all regular files' contents together. ``expansion_ratio`` is the
    uncompressed size in terms of the compressed one, held against only from ``expansion_floor``
    on: deflate reaches 1032, zstd far more, and layers with an empty disk image or database come
    near the former, but not with many gigabytes.
    """

    entries: int = 1_000_000
    metadata_bytes: int = 128 * MIB
    depth: int = 256
    name_bytes: int = 255
    path_bytes: int = 4095
    target_bytes: int = 4095
    xattr_name_bytes: int = 255
    xattr_value_bytes: int = 65535
    xattr_bytes: int = 128 * 1024
    extension_bytes: int = 1 * MIB
    total_bytes: int = 1024 * GIB
    expansion_ratio: int = 256
    expansion_floor: int = 4 * GIB

    def expanded_limit(self, compressed_size: int) -> int:
        """Bytes to which a layer of ``compressed_size`` bytes may expand, its framing included."""
        return min(
            self.total_bytes, max(self.expansion_floor, compressed_size * self.expansion_ratio)
        )


DEFAULT_CAPS = LayerCaps()
