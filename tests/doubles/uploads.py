"""How a scripted upstream takes blobs: uploads in chunks, in one piece, and mounts."""

import hashlib
import itertools
import re
from urllib.parse import parse_qs

from tests.doubles.rules import RecordedRequest
from tests.doubles.sending import Answer
from tests.doubles.shaping import error, plain

UPLOADS = re.compile(r"/v2/(?P<repository>.+?)/blobs/uploads/(?P<upload>[^/]*)")


class Uploads:
    """The uploads that are under way; what is finished becomes a blob.

    Every Location has another state in its query, and only the latest one is good.
    """

    def __init__(self, blobs: dict[tuple[str, str], memoryview]) -> None:
        """``blobs`` by repository and digest."""
        self.base = ""
        """What stands before the path of a Location: empty for a relative one."""
        self.mounts = True
        self.least_chunk: int | None = None
        self.cancelled = 0
        self._blobs = blobs
        self._numbers = itertools.count(1)
        self._received: dict[str, bytearray] = {}
        self._states: dict[str, int] = {}

    def lose_all(self) -> None:
        """Know no upload any more."""
        self._received.clear()

    def under_way(self) -> int:
        """How many uploads have neither ended nor been cancelled."""
        return len(self._received)

    def answer(self, route: re.Match[str], request: RecordedRequest, body: bytes) -> Answer:
        """The answer to a request below ``/blobs/uploads/``."""
        repository, upload = route["repository"], route["upload"]
        asked = {name: values[0] for name, values in parse_qs(request.query).items()}
        if not upload:
            return self._begin(repository, asked)
        if upload not in self._received or asked.get("state") != str(self._states[upload]):
            return error(404, "BLOB_UPLOAD_UNKNOWN")
        received = self._received[upload]
        if request.method == "DELETE":
            del self._received[upload]
            self.cancelled += 1
            return plain(204, b"")
        if request.method == "PATCH":
            start = request.headers.get("content-range", "0-").partition("-")[0]
            if int(start) != len(received):
                return error(416, "BLOB_UPLOAD_INVALID", self._fields(repository, upload))
            received += body
            if len(body) == int(request.headers["content-length"]):
                # The answer to a chunk that was cut never comes: its state stays good.
                self._states[upload] += 1
            return plain(202, b"", self._fields(repository, upload))
        if request.method == "GET":
            return plain(204, b"", self._fields(repository, upload))
        received += body
        digest = f"sha256:{hashlib.sha256(received).hexdigest()}"
        if digest != asked.get("digest"):
            return error(400, "DIGEST_INVALID")
        self._blobs[repository, digest] = memoryview(bytes(received))
        del self._received[upload]
        return plain(201, b"", {"Docker-Content-Digest": digest})

    def _begin(self, repository: str, asked: dict[str, str]) -> Answer:
        content = self._blobs.get((asked.get("from", ""), asked.get("mount", "")))
        if content is not None and self.mounts:
            self._blobs[repository, asked["mount"]] = content
            return plain(201, b"", {"Location": f"/v2/{repository}/blobs/{asked['mount']}"})
        upload = str(next(self._numbers))
        self._received[upload] = bytearray()
        self._states[upload] = 0
        fields = self._fields(repository, upload)
        if self.least_chunk is not None:
            fields["OCI-Chunk-Min-Length"] = str(self.least_chunk)
        return plain(202, b"", fields)

    def _fields(self, repository: str, upload: str) -> dict[str, str]:
        path = f"/v2/{repository}/blobs/uploads/{upload}"
        last = max(0, len(self._received[upload]) - 1)
        return {
            "Location": f"{self.base}{path}?state={self._states[upload]}",
            "Range": f"0-{last}",
        }
