"""What can go wrong with the bytes on this node.

::

    StoreError                  the store itself: one line for the operator
      StoreLocked               another process holds this cache
      StoreForeign              a directory belongs to another cache, or another format version
      StoreUnusable             a directory cannot be created, read or written
    FillFailed                  the filler could not bring the bytes that were asked for
    FillerUnreachable           the filler did not answer within the deadline
"""


class StoreError(Exception):
    """A cache directory that cannot be used; the message is one line with the remedy."""


class StoreLocked(StoreError):
    """Another process holds the lock of a cache directory."""


class StoreForeign(StoreError):
    """A directory is of another format version, or belongs to another cache."""


class StoreUnusable(StoreError):
    """A directory cannot be created, read or written."""


class FillFailed(Exception):
    """The filler's answer ``failed``.

    ``code`` is one of ``deadline, denied, missing, digest, space, protocol, upstream, refused``;
    ``key``, ``value`` and ``limit`` name the setting that ended it when ``code`` is ``deadline``;
    ``retry_after`` (seconds) is set when the upstream asked for a pause.
    """

    def __init__(
        self,
        code: str,
        text: str,
        *,
        key: str | None = None,
        value: str | None = None,
        limit: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.key = key
        self.value = value
        self.limit = limit
        self.retry_after = retry_after

    def as_message(self) -> dict[str, object]:
        """The fields of a ``failed`` answer; absent ones are left out."""
        fields = {
            "code": self.code,
            "text": self.text,
            "key": self.key,
            "value": self.value,
            "limit": self.limit,
            "retry_after": self.retry_after,
        }
        return {name: field for name, field in fields.items() if field is not None}

    @classmethod
    def from_message(cls, message: dict[str, object]) -> "FillFailed":
        """The error that a ``failed`` answer describes."""

        def text(name: str) -> str | None:
            field = message.get(name)
            return None if field is None else str(field)

        retry_after = message.get("retry_after")
        return cls(
            text("code") or "upstream",
            text("text") or "the filler gave no reason",
            key=text("key"),
            value=text("value"),
            limit=text("limit"),
            retry_after=float(retry_after) if isinstance(retry_after, int | float) else None,
        )


class FillerUnreachable(Exception):
    """No answer on ``fill.sock`` within the deadline."""
