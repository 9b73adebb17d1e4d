"""Real clients: containerd's ctr, skopeo, podman and buildah, each with a state of its own.

A client pulls an image and says what arrived::

    client.use_mirror(registry.host, registry.url, mirror.url)
    assert client.pull(reference) == Arrived.whole(image.platform())

Nothing of the machine's own configuration or storage is used, but for the cache of
containers/image that knows which blobs were seen where (/var/lib/containers/cache, no option).
"""

import abc
import base64
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.parts.accounts import Account
from tests.parts.containerd import Containerd, write_hosts_toml
from tests.parts.images import PlatformImage, sha256_of
from tests.parts.processes import ProcessFailed, run

PULL_DEADLINE = 120.0
"""Seconds that a pull may take."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """What a client has after a pull: the image of this platform.

    All digests were computed from the stored bytes. podman and buildah keep no blobs but files:
    for each layer whose tar (put together again from those) has the right diff ID, ``layers``
    holds the digest that the client had found while it pulled.
    """

    manifest: str
    config: str
    layers: tuple[str, ...]

    @classmethod
    def whole(cls, image: PlatformImage) -> Self:
        """What has to arrive of ``image``."""
        layers = tuple(layer.digest for layer in image.layers)
        return cls(image.manifest.digest, image.config.digest, layers)


class Client(abc.ABC):
    """A program that pulls images from a registry, directly or through a mirror."""

    name: str

    @abc.abstractmethod
    def use_mirror(self, host: str, upstream_url: str, mirror_url: str | None) -> None:
        """From now on images of ``host`` come from ``mirror_url``, else from ``upstream_url``.

        ``host`` as in image names, the mirror None for none; it replaces the previous choice.
        """

    @abc.abstractmethod
    def pull(self, reference: str, account: Account | None = None) -> Arrived:
        """Pull ``HOST/repository:tag`` or ``…@digest``; ProcessFailed when the client fails."""

    @abc.abstractmethod
    def wipe(self) -> None:
        """Forget all images."""

    def __str__(self) -> str:
        return self.name


class Ctr(Client):
    """``ctr images pull`` in a private containerd: hosts.toml, unpacking included."""

    name = "ctr"

    def __init__(self, containerd: Containerd) -> None:
        """``containerd`` is running."""
        self.containerd = containerd
        self.hosts = containerd.directory / "hosts"

    def use_mirror(self, host: str, upstream_url: str, mirror_url: str | None) -> None:
        shutil.rmtree(self.hosts, ignore_errors=True)
        write_hosts_toml(self.hosts, host, mirror_url, upstream_url)

    def pull(self, reference: str, account: Account | None = None) -> Arrived:
        self._pull(["images", "pull", "--snapshotter", "native"], reference, account)
        return self._arrived(reference)

    def fetch(self, reference: str, account: Account | None = None) -> Arrived:
        """Bring the blobs without unpacking them: for large layers."""
        self._pull(["content", "fetch"], reference, account)
        return self._arrived(reference)

    def wipe(self) -> None:
        self.containerd.wipe()

    def _pull(self, command: list[str], reference: str, account: Account | None) -> None:
        self.hosts.mkdir(exist_ok=True)
        user = ["--user", str(account)] if account else []
        self.containerd.ctr(
            [*command, "--hosts-dir", self.hosts, *user, reference], deadline=PULL_DEADLINE
        )

    def _arrived(self, reference: str) -> Arrived:
        listed = self.containerd.ctr(["images", "list", f"name=={reference}"])
        found = re.search(r"sha256:[0-9a-f]{64}", listed)
        if found is None:
            raise ProcessFailed(f"ctr has no image {reference}:\n{listed}")
        return _arrived(self.containerd.content, found[0])


class Skopeo(Client):
    """``skopeo copy`` to an OCI layout."""

    name = "skopeo"

    def __init__(self, directory: Path) -> None:
        self._settings = _Settings(directory, directory / "run")
        self._layout = directory / "layout"

    def use_mirror(self, host: str, upstream_url: str, mirror_url: str | None) -> None:
        self._settings.use_mirror(host, upstream_url, mirror_url)

    def use_registries(self, text: str) -> None:
        """From now on ``text`` is the registries.conf."""
        self._settings.registries.write_text(text)

    def pull(self, reference: str, account: Account | None = None) -> Arrived:
        self.wipe()
        run(
            [
                "skopeo",
                "--insecure-policy",
                # It does not look at CONTAINERS_REGISTRIES_CONF.
                "--registries-conf",
                self._settings.registries,
                "copy",
                "--preserve-digests",
                "--src-tls-verify=false",
                *([f"--src-creds={account}"] if account else ["--src-no-creds"]),
                f"docker://{reference}",
                f"oci:{self._layout}:image",
            ],
            environment=self._settings.environment,
            deadline=PULL_DEADLINE,
        )
        (top,) = json.loads((self._layout / "index.json").read_text())["manifests"]
        return _arrived(self._layout / "blobs/sha256", top["digest"])

    def wipe(self) -> None:
        shutil.rmtree(self._layout, ignore_errors=True)


class _StorageClient(Client):
    """podman and buildah: both keep images in containers/storage, here with the vfs driver."""

    def __init__(self, directory: Path) -> None:
        # podman wants a runroot of at most 50 characters; pytest's directories are longer.
        self._run = Path(tempfile.mkdtemp(prefix="containers-"))
        self._settings = _Settings(directory, self._run)
        self._directory = directory
        self._root = directory / "storage"

    @abc.abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """The program with its own global options."""

    def use_mirror(self, host: str, upstream_url: str, mirror_url: str | None) -> None:
        self._settings.use_mirror(host, upstream_url, mirror_url)

    def use_registries(self, text: str) -> None:
        """From now on ``text`` is the registries.conf."""
        self._settings.registries.write_text(text)

    def pull(self, reference: str, account: Account | None = None) -> Arrived:
        completed = run(
            [
                *self._command(),
                "--root",
                self._root,
                "--runroot",
                self._run,
                "--storage-driver",
                "vfs",
                "pull",
                "--quiet",
                "--tls-verify=false",
                # Else an image that is there already satisfies buildah.
                *(["--policy", "always"] if self.name == "buildah" else []),
                *(["--creds", str(account)] if account else []),
                reference,
            ],
            environment=self._settings.environment,
            deadline=PULL_DEADLINE,
        )
        return self._arrived(completed.stdout.split()[-1].removeprefix("sha256:"))

    def wipe(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)
        shutil.rmtree(self._run, ignore_errors=True)

    def _arrived(self, image: str) -> Arrived:
        """Have the layers' tars put together again from the unpacked files, and hash those."""
        stored = self._root / "vfs-images" / image
        body = _big(stored, "manifest").read_bytes()
        config = _big(stored, json.loads(body)["config"]["digest"])
        tars = self._directory / "tars"
        graph = f"[vfs@{self._root}+{self._run}]"
        run(
            [
                "skopeo",
                "--insecure-policy",
                "copy",
                "--quiet",
                f"containers-storage:{graph}@{image}",
                f"dir:{tars}",
            ],
            environment=self._settings.environment,
            deadline=PULL_DEADLINE,
        )
        present = {sha256_of(file) for file in tars.iterdir()}
        shutil.rmtree(tars)
        layers = json.loads((self._root / "vfs-layers/layers.json").read_text())
        digests = {layer["diff-digest"]: layer["compressed-diff-digest"] for layer in layers}
        diff_ids = json.loads(config.read_text())["rootfs"]["diff_ids"]
        return Arrived(
            f"sha256:{hashlib.sha256(body).hexdigest()}",
            sha256_of(config),
            tuple(digests[diff_id] for diff_id in diff_ids if diff_id in present),
        )


class Podman(_StorageClient):
    """``podman pull``."""

    name = "podman"

    def load(self, archive: Path) -> Arrived:
        """``podman load`` of an archive of one image; ProcessFailed when it fails."""
        completed = run(
            [
                *self._command(),
                *("--root", self._root, "--runroot", self._run, "--storage-driver", "vfs"),
                *("load", "--quiet", "--input", archive),
            ],
            environment=self._settings.environment,
            deadline=PULL_DEADLINE,
        )
        name = completed.stdout.split()[-1]
        images = json.loads((self._root / "vfs-images/images.json").read_text())
        (found,) = (image["id"] for image in images if name in image.get("names", []))
        return self._arrived(found)

    def _command(self) -> Sequence[str | Path]:
        tmpdir = self._directory / "libpod"
        return ["podman", "--cgroup-manager", "cgroupfs", "--tmpdir", tmpdir]


class Buildah(_StorageClient):
    """``buildah pull``."""

    name = "buildah"

    def _command(self) -> Sequence[str | Path]:
        return ["buildah"]


class _Settings:
    """The files of containers/image and containers/storage, and the environment naming them."""

    def __init__(self, directory: Path, run_directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / "tmp"
        temporary.mkdir()
        self.registries = directory / "registries.conf"
        self.registries.write_text("")
        policy = directory / ".config/containers/policy.json"
        policy.parent.mkdir(parents=True)
        policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        storage = directory / "storage.conf"
        # podman wants the directories here, whatever its options say.
        storage.write_text(
            "[storage]\n"
            'driver = "vfs"\n'
            f'graphroot = "{directory / "storage"}"\n'
            f'runroot = "{run_directory}"\n'
        )
        accounts = directory / "auth.json"
        accounts.write_text("{}")
        containers = directory / "containers.conf"
        containers.write_text('[engine]\nevents_logger = "none"\n')
        self.environment = {
            "HOME": str(directory),
            "TMPDIR": str(temporary),
            "XDG_RUNTIME_DIR": str(temporary),
            "REGISTRY_AUTH_FILE": str(accounts),
            "CONTAINERS_REGISTRIES_CONF": str(self.registries),
            "CONTAINERS_STORAGE_CONF": str(storage),
            "CONTAINERS_CONF": str(containers),
        }

    def use_mirror(self, host: str, upstream_url: str, mirror_url: str | None) -> None:
        self.registries.write_text(registries_conf(host, upstream_url, mirror_url))


def registries_conf(prefix: str, upstream_url: str, mirror_url: str | None) -> str:
    """A registries.conf: images of ``prefix`` from the mirror, else from upstream.

    A mirror may have a path: ``http://127.0.0.1:5050/registry.example``.
    """
    lines = [
        "[[registry]]",
        f'prefix = "{prefix}"',
        f'location = "{_location(upstream_url)}"',
        "insecure = true",
    ]
    if mirror_url is not None:
        lines += ["[[registry.mirror]]", f'location = "{_location(mirror_url)}"', "insecure = true"]
    return "\n".join([*lines, ""])


def _location(url: str) -> str:
    return url.partition("://")[2].rstrip("/")


def _arrived(blobs: Path, top: str, platform: str = "amd64") -> Arrived:
    """Hash what a directory of blobs named by their hex digests holds of an image."""
    body = _read(blobs, top)
    manifest = json.loads(body)
    if "manifests" in manifest:
        (entry,) = (
            entry["digest"]
            for entry in manifest["manifests"]
            if entry["platform"]["architecture"] == platform
        )
        return _arrived(blobs, entry, platform)
    config, *layers = (
        sha256_of(_file(blobs, blob["digest"]))
        for blob in [manifest["config"], *manifest["layers"]]
    )
    return Arrived(f"sha256:{hashlib.sha256(body).hexdigest()}", config, tuple(layers))


def _read(blobs: Path, digest: str) -> bytes:
    return _file(blobs, digest).read_bytes()


def _file(blobs: Path, digest: str) -> Path:
    return blobs / digest.removeprefix("sha256:")


def _big(stored: Path, key: str) -> Path:
    """The file of a "big data item": containers/storage encodes keys that are no plain names."""
    plain = stored / key
    return plain if plain.exists() else stored / f"={base64.b64encode(key.encode()).decode()}"
