"""Archives made by hand, with whatever docker save would never write."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

LAYER = b"a layer, whose bytes no place looks into" * 50


def write(file: Path, entries: Iterable[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT) -> Path:
    """A tar of regular files; a content that begins with ``->`` makes a symbolic link."""
    with tarfile.open(file, "w", format=form) as tar:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            if content.startswith(b"->"):
                entry.type, entry.linkname = tarfile.SYMTYPE, content[2:].decode()
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return file


def saved(
    layers: Iterable[bytes] = (LAYER,),
    *,
    names: Iterable[str] | None = ("app:1",),
    diff_ids: Iterable[str] | None = None,
    config_name: str | None = None,
) -> list[tuple[str, bytes]]:
    """The entries of an archive of the old form: ``N/layer.tar``, a configuration, the manifest."""
    layers = list(layers)
    ids = [f"sha256:{sha256(layer)}" for layer in layers] if diff_ids is None else list(diff_ids)
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": ids}}).encode()
    name = f"{sha256(config)}.json" if config_name is None else config_name
    paths = [f"{number}/layer.tar" for number in range(len(layers))]
    image = {
        "Config": name,
        "RepoTags": None if names is None else list(names),
        "Layers": paths,
    }
    return [
        *zip(paths, layers, strict=True),
        (name, config),
        ("manifest.json", json.dumps([image]).encode()),
    ]


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
