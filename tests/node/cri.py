"""kubelet's part: pods and containers over CRI (k8s.io/cri-api, runtime/v1/api.proto)."""

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from tests.node.messages import Fields, fields, message

_NODE = 2
"""NamespaceMode: the network is the node's."""
EXITED = 2
"""ContainerState."""

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Status:
    """What CRI says of a container."""

    state: int
    exit_code: int


class Cri:
    """The services of one containerd."""

    def __init__(self, address: Path) -> None:
        self._address = address

    # --- images ---

    def pull(self, reference: str, deadline: float = 60.0) -> None:
        """PullImage; grpc.RpcError where it fails."""
        self._call("ImageService/PullImage", message((1, _image(reference))), deadline)

    def remove_image(self, reference: str, deadline: float = 30.0) -> None:
        """RemoveImage."""
        self._call("ImageService/RemoveImage", message((1, _image(reference))), deadline)

    def images(self) -> set[str]:
        """ListImages: all tags."""
        answer = self._call("ImageService/ListImages", b"")
        tags = [tag for image in answer.get(1, []) for tag in fields(_bytes(image)).get(2, [])]
        return {_bytes(tag).decode() for tag in tags}

    # --- pods ---

    @contextmanager
    def pod(self, logs: Path) -> Iterator["Pod"]:
        """RunPodSandbox, then StopPodSandbox and RemovePodSandbox with all that is in it.

        Its network is the node's; ``logs`` is a directory.
        """
        name = f"pod{next(_numbers)}"
        metadata = message((1, name), (2, f"uid-{name}"), (3, "default"))
        namespaces = message((1, message((1, _NODE))))
        linux = message((2, namespaces))
        config = message((1, metadata), (3, str(logs)), (8, linux))
        answer = self._call("RuntimeService/RunPodSandbox", message((1, config)))
        pod = Pod(self, _text(answer, 1), config, logs)
        try:
            yield pod
        finally:
            self._call("RuntimeService/StopPodSandbox", message((1, pod.sandbox)))
            self._call("RuntimeService/RemovePodSandbox", message((1, pod.sandbox)))

    def pods(self) -> int:
        """ListPodSandbox: how many there are."""
        return len(self._call("RuntimeService/ListPodSandbox", b"").get(1, []))

    def runtime(self, method: str, *values: tuple[int, bytes | str | int]) -> Fields:
        """A call of RuntimeService."""
        return self._call(f"RuntimeService/{method}", message(*values))

    def _call(self, method: str, request: bytes, deadline: float = 60.0) -> Fields:
        with grpc.insecure_channel(f"unix:{self._address}") as channel:
            answer = channel.unary_unary(f"/runtime.v1.{method}")(request, timeout=deadline)
        return fields(answer)


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that runs."""

    cri: Cri
    sandbox: str
    config: bytes
    logs: Path

    def create(self, reference: str, command: Sequence[str]) -> str:
        """CreateContainer and StartContainer; the container's ID. Its log is ``logs/ID.log``."""
        name = f"container{next(_numbers)}"
        config = message(
            (1, message((1, name))),
            (2, _image(reference)),
            *((3, word) for word in command),
            (11, f"{name}.log"),
        )
        values = ((1, self.sandbox), (2, config), (3, self.config))
        container = _text(self.cri.runtime("CreateContainer", *values), 1)
        self.cri.runtime("StartContainer", (1, container))
        (self.logs / f"{container}.log").symlink_to(f"{name}.log")
        return container

    def status(self, container: str) -> Status:
        """ContainerStatus."""
        answer = self.cri.runtime("ContainerStatus", (1, container))
        found = fields(_bytes(answer[1][0]))
        state, code = (found.get(number, [0])[0] for number in (3, 7))
        assert isinstance(state, int) and isinstance(code, int)
        return Status(state, code)

    def wait(self, container: str, patience: float = 60.0) -> int:
        """Wait until a container has ended; its exit code."""
        end = time.monotonic() + patience
        while (status := self.status(container)).state != EXITED:
            assert time.monotonic() < end, f"after {patience} s it still runs"
            time.sleep(0.05)
        return status.exit_code

    def remove(self, container: str) -> None:
        """StopContainer, at once, and RemoveContainer."""
        self.cri.runtime("StopContainer", (1, container))
        self.cri.runtime("RemoveContainer", (1, container))

    def printed(self, container: str) -> str:
        """What a container has printed: its log without times and streams (CRI's log format)."""
        lines = (self.logs / f"{container}.log").read_text().splitlines()
        text = ""
        for line in lines:
            _, _, tag, content = line.split(" ", 3)
            text += content + ("" if tag == "P" else "\n")
        return text

    def run(self, reference: str, *command: str) -> str:
        """Create a container, wait for its end and remove it; what it printed."""
        container = self.create(reference, command)
        try:
            code = self.wait(container)
            assert code == 0, f"exit code {code}: {self.printed(container)}"
            return self.printed(container)
        finally:
            self.remove(container)


def _image(reference: str) -> bytes:
    return message((1, reference))


def _bytes(value: bytes | int) -> bytes:
    assert isinstance(value, bytes)
    return value


def _text(answer: Fields, number: int) -> str:
    return _bytes(answer[number][0]).decode()
