"""What Debian's ctr-remote records of a real container, and takes from us again."""

import hashlib
import json
from pathlib import Path

from headstart.content.digest import Digest
from headstart.content.landmarks.prefetch_list import ListedFile
from headstart.content.landmarks.record_out import (
    listed_files,
    read_record_out,
    recorded_reads,
    write_record_out,
)
from headstart.content.layer.entry import EntryKind
from tests.content.layer.archives import member, write
from tests.content.layer.unpacked import unpack
from tests.parts.containerd import Containerd
from tests.parts.processes import run
from tests.snapshotter.runnable import SHOW, compiled

DIRECTORIES = [
    member(name, EntryKind.DIRECTORY, mode=0o755)
    for name in (b"bin", b"etc", b"odd", b"proc", b"sys", b"dev")
]
ODD = 'odd/<&> \u00fc\u2028\u007f"\\\t'
WEIGHTS = 3 << 20


def recording(containerd: Containerd, directory: Path, program: bytes) -> tuple[str, bytes]:
    """Have an image and what ctr-remote records of it; returns its name and the record."""
    base = write(
        [
            *DIRECTORIES,
            member(SHOW.encode(), contents=program, mode=0o755),
            member(b"etc/motd", contents=b"good morning\n"),
            member(b"etc/unread", contents=b"never\n"),
            # Found by the container's runtime, which mounts over them.
            member(b"etc/hosts"),
            member(b"etc/resolv.conf"),
        ]
    )
    upper = write(
        [
            *DIRECTORIES[1:3],
            member(ODD.encode(), contents=b"odd\n"),
            member(b"weights", contents=b"w" * WEIGHTS),
            member(b"etc/motd", contents=b"good evening\n"),
        ]
    )
    unpack(containerd, directory / "image", base, upper)
    image = f"localhost/unpacked:{hashlib.sha256(upper).hexdigest()[:12]}"
    record = directory / "record"
    shown = ["/etc/motd", f"/{ODD}", "/weights", "/etc/motd"]
    run(
        [
            *("ctr-remote", "--address", containerd.address, "images", "optimize"),
            *("--oci", "--net-host", "--period", "1", "--record-out", record),
            *("--entrypoint", json.dumps([f"/{SHOW}"]), "--args", json.dumps(shown)),
            *(image, f"{image}-optimized"),
        ]
    )
    return image, record.read_bytes()


def test_a_record_of_ctr_remote_is_read_and_written_byte_for_byte(
    containerd: Containerd, tmp_path: Path
) -> None:
    image, record = recording(containerd, tmp_path, compiled(tmp_path))
    reads = read_record_out(record)
    assert write_record_out(reads) == record
    files = listed_files(reads)
    expected = [(SHOW, 0), ("etc/motd", 1), (ODD, 1), ("weights", 1)]
    assert files == tuple(ListedFile(path.encode(), layer) for path, layer in expected)
    assert len(reads) > len(files)
    manifests = {read.manifest for read in reads}
    assert None not in manifests and len(manifests) == 1

    # Our lines for the same files make the same image as its own.
    ours = tmp_path / "ours"
    layers = [Digest.of(b"base"), Digest.of(b"upper")]
    manifest = reads[0].manifest or layers[0]
    ours.write_bytes(write_record_out(recorded_reads(files, manifest, layers)))
    assert ours.read_bytes() != record
    made = [
        run(
            [
                *("ctr-remote", "--address", containerd.address, "images", "convert", "--estargz"),
                *("--oci", "--estargz-record-in", given, image, f"{image}-by-{given.name}"),
            ]
        ).stdout.split()[-1]
        for given in (ours, tmp_path / "record")
    ]
    assert made[0] == made[1]
