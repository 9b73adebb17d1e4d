"""Threads that hand pieces to one another through bounded channels, and stop together."""

import collections
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

DEPTH = 8
"""Pieces that wait in a channel: with pieces of a MiB this is what bounds the memory of a layer."""
LOOK_SECONDS = 0.2
"""The thread that watches looks so often while it waits."""


class Stopped(Exception):
    """Another thread of the flow has failed."""


class Flow:
    """Some threads around the one that called: the first failure stops all."""

    def __init__(self, on_failure: Callable[[], None]) -> None:
        """``on_failure`` is called once, from the thread that fails: wake what waits elsewhere."""
        self.lock = threading.Lock()
        self.failure: BaseException | None = None
        self._on_failure = on_failure
        self._channels: list[threading.Condition] = []
        self._threads: list[threading.Thread] = []

    def channel(self) -> "Channel[T]":
        """A way for pieces from one thread to another."""
        made: Channel[T] = Channel(self)
        self._channels.append(made.changed)
        return made

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Run ``work`` in a thread; its exception fails the flow."""
        thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Stopped:
            pass
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Stop all threads; the first error is the flow's."""
        with self.lock:
            if self.failure is not None:
                return
            self.failure = error
            for changed in self._channels:
                changed.notify_all()
        self._on_failure()

    def join(self) -> None:
        """Wait until all threads have ended; raises what stopped them."""
        for thread in self._threads:
            thread.join()
        if self.failure is not None:
            raise self.failure


class Channel(Generic[T]):
    """At most :data:`DEPTH` items on their way from one thread to another."""

    def __init__(self, flow: Flow) -> None:
        """Made by :meth:`Flow.channel`."""
        self._flow = flow
        self._items: collections.deque[T] = collections.deque()
        self._ended = False
        self.changed = threading.Condition(flow.lock)

    def put(self, item: T) -> None:
        """Hand over an item; waits for room. Raises :class:`Stopped`."""
        with self.changed:
            while len(self._items) >= DEPTH and self._flow.failure is None:
                self.changed.wait()
            if self._flow.failure is not None:
                raise Stopped
            self._items.append(item)
            self.changed.notify()

    def end(self) -> None:
        """No more items come."""
        with self.changed:
            self._ended = True
            self.changed.notify()

    def items(self, look: Callable[[], None] | None = None) -> Iterator[T]:
        """Take items as they come, up to the end. Raises :class:`Stopped`.

        ``look`` is called before each, and every :data:`LOOK_SECONDS` while none comes.
        """
        while True:
            if look is not None:
                look()
            with self.changed:
                if not (self._items or self._ended or self._flow.failure):
                    self.changed.wait(LOOK_SECONDS if look is not None else None)
                if self._flow.failure is not None:
                    raise Stopped
                if self._items:
                    item = self._items.popleft()
                    self.changed.notify()
                elif self._ended:
                    return
                else:
                    continue
            yield item
            # Not to be held while the next one is waited for.
            del item
