"""What of an answer is let into a blob: the side of a fill that connections' threads call."""

from proxy.fill.blob_files import BlobFiles
from proxy.fill.fetch import Ending, Fetch, Outcome
from proxy.fill.fill import Fill
from proxy.fill.parties import BlobSource


class Intake:
    """The side of a fill that connections' threads call (:class:`receiver.Admission`)."""

    def __init__(self, fill: Fill, source: BlobSource) -> None:
        """For one request at one source."""
        self._fill = fill
        self._source = source

    def admit(self, fetch: Fetch, size: int | None, etag: str | None) -> Outcome | None:
        """Accept the answer's total size and entity tag, or say why not."""
        fill = self._fill
        with fill.intake_lock:
            if fill.files is None:
                if size is None:
                    return Outcome(Ending.NO_LENGTH)
                if fill.size_hint not in (None, size):
                    # Asked twice: the manifest may be wrong, and so may one answer.
                    text = f"the answer is of a blob of {size} bytes, its manifest says "
                    text += str(fill.size_hint)
                    fill.size_hint = None
                    return Outcome(Ending.PROTOCOL, text)
                fill.etag = etag
                refused = self._create(size)
                if refused is not None:
                    return refused
            elif size is not None and size != fill.files.geometry.size:
                return Outcome(
                    Ending.DISPUTED,
                    f"the answer is of a blob of {size} bytes, it has {fill.files.geometry.size}",
                )
            elif etag is not None and fill.etag is not None and etag != fill.etag:
                if not fill.etag_ignored:
                    return Outcome(Ending.CHANGED, "the entity tag changed between two ranges")
            elif fill.etag is None:
                fill.etag = etag
        fill.on_loop(lambda: fill.answered(self._source))
        return None

    def admit_stream(self, fetch: Fetch, size: int | None) -> Outcome | None:
        """Accept a whole answer where a range was asked, or say why not."""
        fill = self._fill
        with fill.intake_lock:
            known = fill.files.geometry.size if fill.files else (size or fill.size_hint)
            if known is None and size != 0:
                return Outcome(Ending.NO_LENGTH)
            known = known or 0
            if size is not None and size != known:
                return Outcome(
                    Ending.DISPUTED if fill.files is not None else Ending.PROTOCOL,
                    f"the answer has {size} bytes, the blob has {known}",
                )
            if fill.stream is not None and fill.stream is not fetch:
                return Outcome(Ending.CUT, "another connection already brings the whole blob")
            length = min(fetch.stop, known) - fetch.start
            if fill.files is not None and 0 < length <= fill.files.map.available(
                fetch.start, length
            ):
                return Outcome(Ending.CUT, "another connection has brought it meanwhile")
            if fill.largest_range is not None and known > fill.largest_range:
                fill.on_loop(fill.outgrown)
                return Outcome(Ending.CUT, "what is held in memory is taken in ranges only")
            if fill.files is None:
                refused = self._create(known)
                if refused is not None:
                    return refused
            fill.stream = fetch
            fetch.stream = True
            with fetch.lock:
                fetch.start = fetch.reserved = fetch.committed = 0
                fetch.stop = known
        fill.on_loop(lambda: fill.became_stream(fetch, self._source))
        return None

    def _create(self, size: int) -> Outcome | None:
        fill = self._fill
        try:
            fill.files = fill.around.create_files(fill.digest, size)
        except OSError as error:
            return Outcome(Ending.DISK, str(error), error=error)
        return None

    def opened_files(self) -> BlobFiles:
        """The files to write to."""
        files = self._fill.files
        if files is None:
            raise RuntimeError("an answer was admitted without files")
        return files

    def reserve(self, extent: int) -> None:
        """Reserve the extent's space. Raises OSError."""
        fill = self._fill
        if extent not in fill.reserved:
            with fill.reserve_lock:
                if extent not in fill.reserved:
                    fill.around.reserve(fill.digest, self.opened_files(), extent)
                    fill.reserved.add(extent)

    def wrote(self, stripe: int, file_offset: int, length: int) -> None:
        """Count a write; may wait for the disk."""
        self._fill.around.wrote(self.opened_files(), stripe, file_offset, length)

    def extent_whole(self, extent: int, digest: bytes | None) -> None:
        """Record the extent's BLAKE3, reading it back when several ranges brought it."""
        files = self.opened_files()
        files.set_blake3(extent, digest if digest is not None else files.blake3_of(extent))

    def progressed(self) -> None:
        """Bytes were published: tell the loop, once until it has looked."""
        self._fill.note_progress()
