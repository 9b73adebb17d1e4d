"""What warm jobs have around them: a scripted filler, manifests of a dictionary, a real index."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from headstart.content.digest import Digest
from headstart.content.manifest import OCI_INDEX, OCI_MANIFEST, read_manifest
from headstart.registry.errors import UpstreamMissing
from headstart.registry.upstream import Upstream
from headstart.store.fill_client import FillClient
from proxy.serve.manifests import FoundManifest
from proxy.serve.records import AsyncIndex
from proxy.warm.job import WarmJob
from proxy.warm.jobs import WarmJobs
from proxy.warm.request import WarmRequest
from tests.warm.fill_server import FillServer

HOST = "registry.example"
MIB = 1024 * 1024
PATIENCE = 10.0


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run one coroutine, with a bound."""
    asyncio.run(asyncio.wait_for(test(), 30))


def descriptor(
    name: str, size: int, media_type: str = "layer", **more: object
) -> dict[str, object]:
    """A descriptor whose digest is that of its name."""
    return {"mediaType": media_type, "digest": str(Digest.of(name.encode())), "size": size, **more}


@dataclass
class StoredManifests:
    """Manifests by repository and reference; counts what it is asked."""

    bodies: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    error: Exception | None = None
    warning: str | None = None

    def put(self, repository: str, tag: str | None, document: dict[str, object]) -> Digest:
        """Add a manifest under its digest, and a tag."""
        media_type = OCI_INDEX if "manifests" in document else OCI_MANIFEST
        body = json.dumps({"mediaType": media_type, **document}).encode()
        digest = Digest.of(body)
        for reference in (str(digest), *([tag] if tag else [])):
            self.bodies[f"{repository} {reference}"] = (body, media_type)
        return digest

    def put_image(
        self, repository: str, tag: str | None, layers: Sequence[dict[str, object]]
    ) -> Digest:
        """Add an image with a config of 100 bytes."""
        config = descriptor(f"config of {repository} {tag}", 100, "application/config+json")
        return self.put(repository, tag, {"config": config, "layers": list(layers)})

    def put_image_of(
        self, repository: str, tag: str, config: bytes, layers: Sequence[dict[str, object]]
    ) -> Digest:
        """Add an image with a known config."""
        of = {"mediaType": "config", "digest": str(Digest.of(config)), "size": len(config)}
        return self.put(repository, tag, {"config": of, "layers": list(layers)})

    async def find(
        self,
        upstream: Upstream,
        repository: str,
        reference: str | Digest,
        accept: str,
        authorization: str | None = None,
    ) -> FoundManifest:
        """As :class:`proxy.serve.manifests.Manifests`."""
        self.asked.append(f"{repository} {reference}")
        if self.error is not None:
            raise self.error
        try:
            body, media_type = self.bodies[f"{repository} {reference}"]
        except KeyError:
            raise UpstreamMissing(f"{upstream.host}: no {repository}:{reference}") from None
        document = read_manifest(body, media_type)
        return FoundManifest(body, media_type, Digest.of(body), self.warning, "miss", document)


@dataclass
class Situation:
    """Everything around the jobs of a test."""

    directory: Path
    fills: FillServer
    manifests: StoredManifests
    upstreams: dict[str, Upstream]
    filler: FillClient
    jobs: WarmJobs
    capacity: int | None = None
    index: AsyncIndex | None = None

    async def submit(self, image: str = f"{HOST}/team/app:1", **more: object) -> WarmJob:
        """Ask for a job."""
        asked = {"image": image, "platform": "linux/amd64", **more}
        return await self.jobs.submit(WarmRequest.read(asked, self.upstreams))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something; AssertionError when it does not come."""
    ends = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        assert asyncio.get_running_loop().time() < ends, "did not happen in time"
        await asyncio.sleep(0.01)


async def until_ended(job: WarmJob) -> str:
    """The state in which the job ends."""
    await until(lambda: job.ended)
    assert job.task is not None
    await job.task
    return job.state


@asynccontextmanager
async def situation(
    directory: Path, manifests: StoredManifests | None = None, **upstream: object
) -> AsyncIterator[Situation]:
    """Jobs of a fresh process; called again with the same directory it is the next process."""
    known = {HOST: Upstream(HOST, f"https://{HOST}", **upstream)}  # type: ignore[arg-type]
    manifests = manifests or StoredManifests()
    (directory / "index").mkdir(exist_ok=True, parents=True)
    async with AsyncExitStack() as stack:
        fills = await stack.enter_async_context(FillServer(directory))
        filler = await stack.enter_async_context(FillClient(fills.socket, "mirror"))
        index = AsyncIndex(directory / "index", lambda: filler.connected)
        stack.push_async_callback(index.aclose)
        found: list[Situation] = []

        async def capacity() -> int | None:
            return found[0].capacity

        jobs = WarmJobs(
            upstreams=known, manifests=manifests, filler=filler, index=index, capacity=capacity
        )
        found.append(Situation(directory, fills, manifests, known, filler, jobs, index=index))
        await stack.enter_async_context(jobs)
        yield found[0]
