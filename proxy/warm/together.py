"""Several things at once, of which the first failure ends all."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def each(work: Callable[[T], Awaitable[R]], given: Iterable[T], at_once: int) -> list[R]:
    """What ``work`` gives for each, in order; at most ``at_once`` run at a time.

    Raises what the first that failed has raised, after the others have been cancelled.
    """
    room = asyncio.Semaphore(at_once)

    async def one(thing: T) -> R:
        async with room:
            return await work(thing)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(thing)) for thing in given]
    except BaseExceptionGroup as failures:
        first: BaseException = failures
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
    return [task.result() for task in tasks]
