"""Makes answers: plain ones, ranges of a content, and what a rule changes in their form."""

import gzip
import json

from tests.doubles.rules import RecordedRequest, Rule
from tests.doubles.sending import Answer


def plain(status: int, body: bytes, fields: dict[str, str] | None = None) -> Answer:
    """An answer of known length."""
    return Answer(status, dict(fields or {}), [memoryview(body)], len(body))


def error(status: int, code: str, fields: dict[str, str] | None = None) -> Answer:
    """An answer with the distribution specification's form of an error."""
    body = json.dumps({"errors": [{"code": code, "message": code.lower()}]}).encode()
    return plain(status, body, {"Content-Type": "application/json", **(fields or {})})


def ranged(
    request: RecordedRequest, content: memoryview, rule: Rule, fields: dict[str, str]
) -> Answer:
    """The whole content or the range that was asked for, with what the rule changes in it."""
    if rule.payload is not None:
        content = memoryview(rule.payload)
    fields = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **fields}
    if rule.etag is not None:
        fields["ETag"] = rule.etag
    size, wanted, status = len(content), request.range, 200
    start, stop = 0, size
    if rule.without_range_support:
        del fields["Accept-Ranges"]
    if wanted is not None and not (rule.ignore_range or rule.without_range_support):
        first, last = wanted
        if first is None:
            start = max(0, size - (last or 0))
        else:
            start, stop = first, size if last is None else min(size, last + 1)
        if start >= stop:
            answer = error(416, "RANGE_INVALID", {**fields, "Content-Range": f"bytes */{size}"})
            return answer
        status = 206
        if not rule.without_content_range:
            total = size if rule.range_total is None else rule.range_total
            shown_start, shown_last = start + rule.range_shift, stop - 1 + rule.range_shift
            fields["Content-Range"] = f"bytes {shown_start}-{shown_last}/{total}"
    body = [content[start:stop]]
    if rule.flip is not None and start <= rule.flip < stop:
        wrong = memoryview(bytes([content[rule.flip] ^ 1]))
        body = [content[start : rule.flip], wrong, content[rule.flip + 1 : stop]]
    return Answer(status, fields, body, stop - start)


def shaped(answer: Answer, rule: Rule) -> Answer:
    """What the rule changes in the form of an answer."""
    if rule.gzip:
        coded = gzip.compress(b"".join(answer.body), 1)
        answer.body, answer.length = [memoryview(coded)], len(coded)
        answer.fields["Content-Encoding"] = "gzip"
    replaced = {name.lower() for name in rule.headers}
    kept = {name: text for name, text in answer.fields.items() if name.lower() not in replaced}
    answer.fields = {**kept, **rule.headers}
    if rule.declared_length is not None:
        answer.length, answer.close = rule.declared_length, True
    if rule.extra:
        answer.body.append(memoryview(b"\0" * rule.extra))
        answer.close = True
    if rule.chunked or rule.close_delimited:
        answer.length, answer.chunked = None, rule.chunked
        answer.close = answer.close or rule.close_delimited
    return answer
