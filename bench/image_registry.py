"""A registry that offers pulls of one image, and nothing else."""

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.link import Link
from bench.llm_image import LlmImage
from tests.parts.images import OCI_MANIFEST
from tests.parts.nginx import Nginx

REPOSITORY = "bench/llm"


class ImageRegistry(Nginx):
    """nginx with sendfile over the files of one image; perhaps at the far end of a link."""

    def __init__(self, directory: Path, image: LlmImage, link: Link | None = None) -> None:
        super().__init__(directory)
        self._image = image
        self._link = link
        self._address = "127.0.0.1" if link is None else link.address

    @property
    def host(self) -> str:
        return f"{self._address}:{self.port}"

    def reference(self, tag: str) -> str:
        """How the image is called."""
        return f"{self.host}/{REPOSITORY}:{tag}"

    def arguments(self) -> Sequence[str | Path]:
        inside = [] if self._link is None else ["ip", "netns", "exec", self._link.namespace]
        return [*inside, *super().arguments()]

    def ready(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((self._address, self.port)) == 0

    def locations(self) -> str:
        directory = self._image.directory
        named: Mapping[str, str] = {
            **self._image.tags,
            **{digest: digest for digest in self._image.tags.values()},
        }
        manifests = "".join(
            f"location = /v2/{REPOSITORY}/manifests/{name} {{\n"
            f"alias {directory}/manifests/{digest};\n"
            f"types {{ }}\ndefault_type {OCI_MANIFEST};\n"
            f'add_header Docker-Content-Digest "{digest}";\n'
            "}\n"
            for name, digest in named.items()
        )
        return (
            "location = /v2/ { return 200 '{}'; }\n"
            f"{manifests}"
            f'location ~ "^/v2/{REPOSITORY}/blobs/(?<digest>sha256:[0-9a-f]{{64}})$" {{\n'
            f"alias {directory}/blobs/$digest;\n"
            'add_header Docker-Content-Digest "$digest";\n'
            "}\n"
        )
