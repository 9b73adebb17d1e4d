"""The directories of a cache: their stamp, their lock and the paths of objects."""

import fcntl
import json
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from headstart.content.digest import Digest
from headstart.store.errors import StoreForeign, StoreLocked, StoreUnusable

FORMAT_VERSION = 1
STAMP = "HEADSTART"
STAND_INS = Path("run", "stand-ins")
"""Below a stripe: empty files in place of those on a stripe that cannot be used."""
LOCK_WAIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below the stripes of one cache; ``stripes`` are absolute directories."""

    stripes: tuple[Path, ...]

    @property
    def index(self) -> Path:
        """The directory of the index."""
        return self.stripes[0] / "index"

    @property
    def run(self) -> Path:
        """The directory of the lock and the sockets."""
        return self.stripes[0] / "run"

    @property
    def fill_socket(self) -> Path:
        """Where the filler listens."""
        return self.run / "fill.sock"

    def blob_paths(self, digest: Digest, stripes: int) -> list[Path]:
        """The files of a blob that is spread over the first ``stripes`` directories."""
        below = Path("blobs", digest.algorithm, digest.hex[:2], digest.hex)
        return [stripe / below for stripe in self.stripes[:stripes]]

    def layer_paths(self, digest: Digest, stripes: int) -> list[Path]:
        """The data device of a layer image that is spread over the first ``stripes`` directories.

        ``digest`` is of the layer's blob.
        """
        below = Path("layers", digest.algorithm, digest.hex[:2], digest.hex)
        return [stripe / below for stripe in self.stripes[:stripes]]

    def layer_meta_path(self, digest: Digest) -> Path:
        """The metadata of a layer image."""
        return _beside(self.layer_paths(digest, 1)[0], ".meta")

    def layer_frame_path(self, digest: Digest) -> Path:
        """The framing of a layer's tar, until its diff ID is verified."""
        return _beside(self.layer_paths(digest, 1)[0], ".frame")

    def layer_toc_path(self, digest: Digest) -> Path:
        """What the blob says of itself, until its diff ID is verified."""
        return _beside(self.layer_paths(digest, 1)[0], ".toc")

    def prepare(self) -> None:
        """Create what is missing and check the stamps; one writer at a time calls this.

        Raises :class:`StoreForeign` or :class:`StoreUnusable`.
        """
        stamps: list[dict[str, object] | None] = []
        for stripe in self.stripes:
            _make_directory(stripe)
            for name in ("run", "blobs", "layers"):
                _make_directory(stripe / name)
            shutil.rmtree(stripe / STAND_INS, ignore_errors=True)
            stamps.append(_read_stamp(stripe))
        known = {str(stamp["cache"]) for stamp in stamps if stamp is not None}
        if len(known) > 1:
            raise StoreForeign(
                f"cache.stripes: {', '.join(map(str, self.stripes))} belong to different caches; "
                "list the directories of one cache, in their old order"
            )
        cache = known.pop() if known else uuid.uuid4().hex
        for number, (stripe, stamp) in enumerate(zip(self.stripes, stamps, strict=True)):
            if stamp is None:
                if any((stripe / "blobs").iterdir()):
                    raise StoreForeign(
                        f"{stripe}: has blobs but no {STAMP} stamp; use an empty directory"
                    )
                _write_stamp(stripe, cache, number)
            elif stamp["stripe"] != number:
                raise StoreForeign(
                    f"{stripe}: is stripe {stamp['stripe']} of its cache, not {number}; "
                    "list cache.stripes in their old order"
                )


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnusable(
            f"cache.stripes: cannot create {path}: {error.strerror}; "
            "choose a directory that this user may write"
        ) from error
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise StoreUnusable(
            f"cache.stripes: {path} is not writable for user id {os.geteuid()}; "
            "change its owner or choose another directory"
        )


def _read_stamp(stripe: Path) -> dict[str, object] | None:
    path = stripe / STAMP
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreUnusable(f"{path}: cannot be read: {error.strerror}") from error
    try:
        stamp = json.loads(content)
        version, cache, number = stamp["format"], stamp["cache"], stamp["stripe"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StoreForeign(f"{path}: is damaged; restore it or use an empty directory") from error
    if version != FORMAT_VERSION:
        raise StoreForeign(
            f"{path}: format version {version}, this program writes {FORMAT_VERSION}; "
            "run `headstart scrub --upgrade` or use an empty directory"
        )
    return {"cache": cache, "stripe": number}


def _write_stamp(stripe: Path, cache: str, number: int) -> None:
    stamp = {"format": FORMAT_VERSION, "cache": cache, "stripe": number}
    temporary = stripe / (STAMP + ".new")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(stamp, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, stripe / STAMP)
    except OSError as error:
        raise StoreUnusable(f"{stripe}: cannot be written: {error.strerror}") from error


class StoreLock:
    """The flock on every stripe's ``run/lock``; it lasts as long as the process."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._descriptors: list[int] = []

    def acquire(self, layout: Layout, wait_seconds: float = LOCK_WAIT_SECONDS) -> None:
        """Take the lock of every stripe; :class:`StoreLocked` names the holder.

        Raises :class:`StoreUnusable` too; holds nothing after either.
        """
        deadline = time.monotonic() + wait_seconds
        for stripe in layout.stripes:
            _make_directory(stripe / "run")
            path = stripe / "run" / "lock"
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            except OSError as error:
                self.release()
                raise StoreUnusable(
                    f"cache.stripes: cannot open {path}: {error.strerror}; "
                    f"change its owner to user id {os.geteuid()} or choose another directory"
                ) from error
            self._descriptors.append(descriptor)
            while not _try_lock(descriptor):
                if time.monotonic() >= deadline:
                    holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
                    self.release()
                    raise StoreLocked(
                        f"cache.stripes: {stripe} is in use by process {holder or 'unknown'}; "
                        "stop it or give this one its own directory"
                    )
                time.sleep(0.05)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)

    def release(self) -> None:
        """Let go; closing the descriptors drops the locks."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
