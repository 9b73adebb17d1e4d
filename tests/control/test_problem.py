"""The table from what went wrong to a problem of RFC 9457."""

import json

import pytest

from headstart.command.complaint import ConfigurationError
from headstart.content.errors import InvalidInput
from headstart.store.errors import FillerUnreachable, FillFailed
from proxy.control.problem import problem_of
from proxy.warm.jobs import JobsFull, JobUnknown


@pytest.mark.parametrize(
    ("error", "status", "members"),
    [
        (
            ConfigurationError("image", "'A'", "is refused", "write a name"),
            422,
            {"field": "image", "value": "'A'", "detail": "is refused; write a name"},
        ),
        (
            InvalidInput("digest", "x", "write sha256:"),
            422,
            {"field": "digest", "value": "x", "detail": "is not valid; write sha256:"},
        ),
        (JobUnknown("there is no job 'x'"), 404, {"detail": "there is no job 'x'"}),
        (JobsFull("100 jobs have not ended"), 429, {"detail": "100 jobs have not ended"}),
        (FillFailed("refused", "pinned"), 409, {"detail": "pinned"}),
        (FillFailed("missing", "not here"), 404, {"detail": "not here"}),
        (FillFailed("of a newer filler", "new"), 502, {"detail": "new"}),
        (FillerUnreachable("no answer within 5 s"), 503, {}),
    ],
)
def test_every_domain_error_is_a_problem(
    error: Exception, status: int, members: dict[str, str]
) -> None:
    problem = problem_of(error)
    assert problem is not None
    answer = problem.answer()
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body = json.loads(bytes(answer.body))
    assert {"type", "title", "status", "detail"} <= set(body)
    assert body["status"] == status
    assert {name: body.get(name) for name in members} == members
    assert ("field" in body) == ("field" in members)


def test_what_may_be_tried_again_says_when() -> None:
    for error in (JobsFull("full"), FillerUnreachable("away")):
        problem = problem_of(error)
        assert problem is not None
        assert int(problem.answer().headers["retry-after"]) > 0


def test_a_surprise_is_no_domain_error() -> None:
    assert problem_of(KeyError("layer")) is None
