"""What the filler does with a layer, in a process of its own.

``python -m bench.inflate_legs ordinary BLOB DIGEST DIFF_ID CACHE`` makes a layer image,
``python -m bench.inflate_legs members TAR CACHE THREADS`` writes the members of one in chunks of
4 MiB; both print seconds, CPU seconds and peak memory as JSON.
"""

import itertools
import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from headstart.content.digest import Digest
from headstart.store.geometry import EXTENT_SIZE
from headstart.store.layout import Layout
from proxy.fill.layers.diff_id_check import DiffIdCheck
from proxy.fill.layers.layer_files import LayerFiles
from proxy.fill.layers.ordinary import make_ordinary
from proxy.fill.pacing import Pacer
from tests.fill.layers.chunked import chunked
from tests.fill.layers.making import GZIP, Arriving
from tests.parts.processes import peak_memory

CHUNK_SIZE = 4 << 20
PACK = 1 << 20


class _File:
    """A blob that is here already, in a file."""

    def __init__(self, path: Path) -> None:
        self.size = path.stat().st_size
        self._descriptor = os.open(path, os.O_RDONLY)

    def read_into(self, offset: int, target: memoryview) -> int:
        return os.preadv(self._descriptor, [target], offset)

    def release(self, stop: int) -> None:
        pass

    def stop(self) -> None:
        pass


class _Room:
    """Any amount of room; writes are paced as in the filler."""

    def __init__(self, layout: Layout) -> None:
        self._pacer = Pacer(layout.stripes[0])

    def reserve(self, length: int, work: object, /) -> None:
        assert callable(work)
        work()

    def wrote(self, descriptor: int, stripe: int, offset: int, length: int, /) -> None:
        self._pacer.wrote(descriptor, offset, length)


def _layout(cache: Path) -> Layout:
    layout = Layout((cache,))
    layout.prepare()
    return layout


def ordinary(blob: Path, digest: Digest, diff_id: Digest, cache: Path) -> dict[str, float]:
    """From the first compressed byte to a layer image that can be mounted."""
    layout = _layout(cache)
    source = _File(blob)
    started, used = time.perf_counter(), time.process_time()
    files = LayerFiles.create(layout, digest, None, EXTENT_SIZE, _Room(layout))
    make_ordinary(source, GZIP, digest, diff_id, files, cancelled=threading.Event())
    assert files.verified
    figures = {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - used,
        "stored": float(files.allocated()),
    }
    files.close()
    return figures


def members(tar: Path, cache: Path, threads: int) -> dict[str, float]:
    """All members of a layer in chunks, then its diff ID."""
    layer = chunked(tar.read_bytes(), extent_size=EXTENT_SIZE, chunk_size=CHUNK_SIZE, pack=PACK)
    layout = _layout(cache)
    files = layer.create(layout, _Room(layout))
    started, used = time.perf_counter(), time.process_time()
    writer = layer.writer(files, Arriving(layer.blob))
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(writer.write, list(writer.missing())):
            pass
    figures = {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - used,
        "size": float(len(layer.tar)),
    }
    assert files.available(0, files.size) == files.size
    started, used = time.perf_counter(), time.process_time()
    check = DiffIdCheck(writer, layer.diff_id)
    assert any(check.advance() for _ in itertools.count())
    figures["check_seconds"] = time.perf_counter() - started
    figures["check_cpu"] = time.process_time() - used
    writer.close()
    files.close()
    return figures


def main() -> None:
    """Run the leg that the arguments name."""
    match sys.argv[1:]:
        case ["ordinary", blob, digest, diff_id, cache]:
            figures = ordinary(Path(blob), Digest.parse(digest), Digest.parse(diff_id), Path(cache))
        case ["members", tar, cache, threads]:
            figures = members(Path(tar), Path(cache), int(threads))
        case arguments:
            raise SystemExit(f"no leg: {arguments}")
    print(json.dumps({**figures, "peak": peak_memory(os.getpid())}))


if __name__ == "__main__":
    main()
