"""What of a layer with a TOC streams first, and how fast the rest follows (``prefetch``)."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from headstart.content.landmarks.range_set import Range
from headstart.store.geometry import MIB
from proxy.fill.layers.members import MemberWriter

PolicyName = Literal["auto", "list", "landmark", "all", "none"]
BackgroundRate = int | Literal["auto", "disabled"]

PACED_BYTES = 4 * MIB
"""Of the rest that are asked for at a time under a rate: as large as a range may be small."""


class Streaming:
    """``prefetch.policy``, and ``prefetch.background`` in bytes a second or a word.

    One for all layers together: they share the rate.
    """

    def __init__(
        self,
        policy: PolicyName = "auto",
        background: BackgroundRate = "auto",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` gives seconds."""
        self._policy = policy
        self._rate = background if isinstance(background, int) else None
        self._clock = clock
        self._free_at = 0.0
        self.brings_rest = policy != "none" and background != "disabled"
        """Whether anything comes that is neither wanted first nor waited for."""

    def first(self, writer: MemberWriter, listed: Sequence[Range] | None) -> Iterable[range] | None:
        """The members that come before the rest; None: there is no rest, all are alike.

        ``listed`` are ranges of the data device, in the order of the image's list, if it has one.
        """
        if self._policy == "none":
            return ()
        if listed is not None and self._policy in ("auto", "list"):
            # One by one as they are asked for: of 50,000 at once the loop would take its time.
            return (writer.members_covering(part.offset, part.stop) for part in listed)
        if self._policy in ("all", "list"):
            return None
        if writer.toc.no_prefetch:
            return ()
        if writer.toc.landmark_offset is None:
            return None
        return (range(writer.beginning_before(writer.toc.landmark_offset)),)

    # --- the rate of the rest ---

    @property
    def most(self) -> int | None:
        """Bytes of the rest that may be asked for at a time; None: any."""
        return None if self._rate is None else min(PACED_BYTES, self._rate)

    def wait(self) -> float:
        """Seconds until more of the rest may be asked for."""
        return max(0.0, self._free_at - self._clock())

    def asked(self, size: int) -> None:
        """So many bytes of the rest are on their way."""
        if self._rate is not None:
            self._free_at = max(self._free_at, self._clock()) + size / self._rate
