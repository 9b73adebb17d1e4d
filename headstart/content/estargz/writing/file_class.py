"""What kind of content a file has, by its name alone: for tables, never for a decision."""

import enum
import re


class FileClass(enum.Enum):
    """The classes of a table; ``.bin`` is with the weights, as PyTorch names them."""

    WEIGHTS = "weights"
    LIBRARY = "library"
    TEXT = "text"
    PACKED = "archive or media"
    OTHER = "other"


_EXTENSIONS = {
    FileClass.WEIGHTS: "bin ckpt engine ggml gguf h5 hdf5 npy npz onnx pdparams plan pt pth"
    " safetensors tflite",
    FileClass.LIBRARY: "a dll dylib ko lib node o pyd so wasm",
    FileClass.TEXT: "c cc cfg cmake conf cpp cs css csv cu cuh go h hpp htm html ini ipynb java"
    " js json jsonl lua m4 map md mjs pem php pl pm po proto py pyi pyx rb rs rst scss sh sql svg"
    " tcl tex toml ts tsv tsx txt xml yaml yml",
    FileClass.PACKED: "7z apk avif bz2 deb egg flac gif gz jar jpeg jpg lz4 m4a mkv mov mp3 mp4 ogg"
    " parquet pdf png rar rpm tbz2 tgz war webm webp whl woff woff2 xz zip zst",
}
_CLASSES = {
    extension.encode(): file_class
    for file_class, extensions in _EXTENSIONS.items()
    for extension in extensions.split()
}
_VERSIONED_LIBRARY = re.compile(rb"\.so(?:\.[0-9]+)+\Z")


def file_class(path: bytes) -> FileClass:
    """The class of a regular file."""
    if _VERSIONED_LIBRARY.search(path):
        return FileClass.LIBRARY
    _, dot, extension = path.rpartition(b"/")[2].lower().rpartition(b".")
    return _CLASSES.get(extension, FileClass.OTHER) if dot else FileClass.OTHER
