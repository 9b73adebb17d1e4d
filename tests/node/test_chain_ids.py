"""An image that claims another one's chain ID: its content is never shown for the other."""

import errno
import random
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.content.estargz.writer import Form
from tests.faults.watching import eventually
from tests.layers.images import MadeLayer, ServedImage, estargz, gzipped, serve
from tests.node.node import Node
from tests.node.test_refused_layers import failed_pull
from tests.node.trees import Archive, base_layer

MIB = 1 << 20
FORM = Form(chunk_size=256 << 10)


def tar(text: bytes, seed: int) -> bytes:
    archive = Archive()
    archive.add("models/weights", random.Random(seed).randbytes(6 * MIB))
    archive.add("etc/motd", text)
    archive.add("etc/unread", text * 100)
    return archive.finish()


def claiming(
    node: Node, repository: str, base: MadeLayer, layer: MadeLayer, honest: MadeLayer
) -> ServedImage:
    """An image of ``layer`` that says it is ``honest``."""
    return serve(
        node.upstream,
        [base, layer],
        repository=repository,
        diff_ids=[base.diff_id, honest.diff_id],
    )


def shown_by(node: Node, reference: str, name: str) -> str:
    return node.containerd.run(reference, name, "/etc/motd", namespace="k8s.io")


def honest_is_shown(node: Node, repository: str, base: MadeLayer, honest: MadeLayer) -> None:
    """The honest image, pulled now, is what it is."""
    serve(node.upstream, [base, honest], repository=repository)
    reference = node.reference(f"{repository}:v1")
    node.cri.pull(reference)
    assert shown_by(node, reference, "honest") == "honest\n"
    node.cri.remove_image(reference)


def test_an_ordinary_layer_with_anothers_diff_id_is_never_mounted(
    node: Node, program: bytes
) -> None:
    base = gzipped(base_layer(program, 500, 5))
    hostile, honest = gzipped(tar(b"hostile\n", 500), 1), gzipped(tar(b"honest\n", 501), 1)
    claiming(node, "team/hostile-ordinary", base, hostile, honest)
    reference = node.reference("team/hostile-ordinary:v1")
    with node.slowly(hostile.digest, 4 * MIB):
        assert "diff ID" in failed_pull(node, reference)
    assert hostile.digest.hex not in node.used_layers()
    # The retry goes the ordinary way, and containerd does not take it either.
    assert "wrong diff id" in failed_pull(node, reference)
    assert hostile.digest.hex in {
        request.path.rpartition(":")[2] for request in node.upstream.blob_requests()
    }
    honest_is_shown(node, "team/honest-ordinary", base, honest)


def test_a_lazy_layer_of_a_repository_that_is_not_trusted_is_never_mounted(
    node: Node, program: bytes
) -> None:
    base = gzipped(base_layer(program, 510, 5))
    hostile, honest = estargz(tar(b"hostile\n", 510), FORM), estargz(tar(b"honest\n", 511), FORM)
    claiming(node, "tenant/hostile", base, hostile, honest)
    reference = node.reference("tenant/hostile:v1")
    before = set(node.snapshotter.mounts())
    # When containerd asks for it nobody can have seen what is wrong with it.
    with node.slowly(hostile.digest, 8 * MIB):
        assert "wrong diff id" in failed_pull(node, reference)
    assert hostile.digest.hex not in node.used_layers()
    assert set(node.snapshotter.mounts()) <= before
    honest_is_shown(node, "team/honest-untrusted", base, honest)


def test_a_lazy_layer_of_a_trusted_repository_is_quarantined_when_it_is_whole(
    node: Node, program: bytes
) -> None:
    base = gzipped(base_layer(program, 520, 5))
    hostile, honest = estargz(tar(b"hostile\n", 520), FORM), estargz(tar(b"honest\n", 521), FORM)
    claiming(node, "team/hostile-lazy", base, hostile, honest)
    serve(node.upstream, [base, honest], repository="team/honest-lazy")
    theirs = node.reference("team/hostile-lazy:v1")
    ours = node.reference("team/honest-lazy:v1")
    with ThreadPoolExecutor(1) as threads:
        with node.slowly(hostile.digest, MIB // 4, before=len(hostile.blob) // 2):
            node.cri.pull(theirs)
            # Before it is whole it is believed, for its own image.
            assert shown_by(node, theirs, "hostile") == "hostile\n"
            with node.started(theirs, "quarantined", "/bin/show", "-") as root:
                waiting = threads.submit(node.cri.pull, ours)
                time.sleep(0.5)
                assert not waiting.done(), "what another image has brought is awaited whole"
                node.upstream.clear_rules()
                node.upstream.drop_connections()
                with pytest.raises(grpc.RpcError, match="diff ID"):
                    waiting.result(timeout=60)
                assert ours not in node.cri.images()
                with pytest.raises(OSError) as unread:
                    (root / "etc/unread").read_bytes()
                assert unread.value.errno == errno.EIO
        with pytest.raises(Exception, match="diff ID"):
            shown_by(node, theirs, "another")
    node.cri.remove_image(theirs)
    eventually(lambda: hostile.digest.hex not in node.used_layers(), 20, "it is unmounted")
    node.cri.pull(ours)
    assert shown_by(node, ours, "honest") == "honest\n"
    node.cri.remove_image(ours)


def test_a_layer_that_is_here_under_its_own_diff_id_is_not_believed_under_another(
    node: Node, program: bytes
) -> None:
    base = gzipped(base_layer(program, 530, 5))
    present, wanted = estargz(tar(b"present\n", 530), FORM), estargz(tar(b"honest\n", 531), FORM)
    serve(node.upstream, [base, present], repository="team/present")
    claiming(node, "team/claiming", base, present, wanted)
    first, theirs = node.reference("team/present:v1"), node.reference("team/claiming:v1")
    with node.slowly(present.digest, MIB // 4, before=len(present.blob) // 2):
        node.cri.pull(first)
        assert shown_by(node, first, "present") == "present\n"
        # Its bytes are on their way, and what is verified of them will be right.
        assert "diff ID" in failed_pull(node, theirs)
    eventually(lambda: node.complete(str(present.digest)), 30, "the layer is whole")
    assert "wrong diff id" in failed_pull(node, theirs)
    honest_is_shown(node, "team/wanted", base, wanted)
    assert shown_by(node, first, "still-present") == "present\n"
    node.cri.remove_image(first)
