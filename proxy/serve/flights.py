"""Single flight: those who ask the same at the same time share one question."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Flights(Generic[T]):
    """Questions under way by key. A question goes on when all who asked have left."""

    def __init__(self) -> None:
        """Nothing is under way."""
        self._under_way: dict[Hashable, asyncio.Task[T]] = {}

    async def join(self, key: Hashable, question: Callable[[], Awaitable[T]]) -> T:
        """The answer to ``question``, or to an equal one that is under way already."""
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.ensure_future(self._ask(question))
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._landed(key, done))
        return await asyncio.shield(task)

    async def aclose(self) -> None:
        """Cancel what is under way."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    async def _ask(question: Callable[[], Awaitable[T]]) -> T:
        return await question()

    def _landed(self, key: Hashable, done: "asyncio.Task[T]") -> None:
        self._under_way.pop(key, None)
        if not done.cancelled():
            done.exception()  # was raised where somebody still waited
