"""What the end of a request means for its blob: a table, without state."""

from dataclasses import dataclass
from enum import Enum

from headstart.registry.errors import (
    CredentialsUnusable,
    RefusedTarget,
    RegistryError,
    UpstreamDeadline,
    UpstreamDenied,
    UpstreamMissing,
    UpstreamProtocol,
    UpstreamThrottled,
)
from headstart.registry.retry import DEFAULT_PAUSE, parse_retry_after
from headstart.store.errors import FillFailed
from proxy.fill.fetch import Ending, Outcome


class Step(Enum):
    """What to do next."""

    DONE = "done"
    AGAIN = "again"
    PAUSE = "pause"
    RENEW = "renew the location"
    SIZE = "find out the size"
    DISPUTE = "again; at last find out whose size is right"
    RESTART = "restart the blob"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A step; ``failure`` is what waiters hear if it was the last try, ``seconds`` a pause."""

    step: Step
    failure: FillFailed
    seconds: float = 0.0


_NOTHING = FillFailed("upstream", "nothing went wrong")


def judge(outcome: Outcome, host: str, *, at_origin: bool) -> Judgement:
    """Decide; ``at_origin`` is False when the answer came from where a redirect led."""
    text = outcome.text or f"{host}: {outcome.ending.value}"
    match outcome.ending:
        case Ending.COMPLETE | Ending.CUT:
            return Judgement(Step.DONE, _NOTHING)
        case Ending.STATUS | Ending.CHALLENGE:
            return _judge_status(outcome, host, at_origin)
        case Ending.UNSATISFIABLE | Ending.NO_LENGTH:
            text = outcome.text or f"{host} does not say how long the blob is"
            return Judgement(Step.SIZE, FillFailed("protocol", text))
        case Ending.DISPUTED:
            return Judgement(Step.DISPUTE, FillFailed("protocol", f"{host}: {text}"))
        case Ending.CHANGED:
            return Judgement(Step.RESTART, FillFailed("upstream", f"{host}: {text}"))
        case Ending.PROTOCOL:
            return Judgement(Step.AGAIN, FillFailed("protocol", f"{host}: {text}"))
        case Ending.DEADLINE:
            key = f"fetch.deadlines.{outcome.key}"
            failure = FillFailed(
                "deadline", f"{text} ({key}: {outcome.value})", key=key, limit=outcome.value
            )
            return Judgement(Step.AGAIN, failure)
        case Ending.REFUSED | Ending.REDIRECT:
            return Judgement(Step.GIVE_UP, FillFailed("refused", text))
        case Ending.DISK:
            return Judgement(Step.GIVE_UP, FillFailed("space", text))
        case Ending.NETWORK:
            return Judgement(Step.AGAIN, FillFailed("upstream", text))


def _judge_status(outcome: Outcome, host: str, at_origin: bool) -> Judgement:
    status = outcome.status
    where = host if at_origin else f"{host}'s object storage"
    pause = parse_retry_after(outcome.retry_after, outcome.date)
    if status == 429 or (status == 503 and pause is not None):
        seconds = DEFAULT_PAUSE if pause is None else pause
        text = f"{where}: {status}, a pause of {seconds:.0f} s"
        return Judgement(Step.PAUSE, FillFailed("upstream", text, retry_after=seconds), seconds)
    if not at_origin and status in (400, 401, 403):
        # A signature that has expired; the registry gives a fresh one.
        return Judgement(Step.RENEW, FillFailed("upstream", f"{where}: {status} for a signed URL"))
    if at_origin and status in (404, 410):
        text = f"{where}: {status}, the upstream does not have it"
        return Judgement(Step.GIVE_UP, FillFailed("missing", text))
    if at_origin and status in (401, 403):
        text = f"{where}: {status}, the upstream refuses it"
        return Judgement(Step.GIVE_UP, FillFailed("denied", text))
    code = "upstream" if status >= 500 or status == 408 or not at_origin else "protocol"
    return Judgement(Step.AGAIN, FillFailed(code, f"{where}: {status}"))


def failure_of(error: RegistryError) -> FillFailed:
    """What a client of fill.sock hears of an error of the control plane."""
    if isinstance(error, UpstreamMissing):
        return FillFailed("missing", str(error))
    if isinstance(error, CredentialsUnusable | UpstreamDenied):
        return FillFailed("denied", str(error))
    if isinstance(error, UpstreamThrottled):
        return FillFailed("upstream", str(error), retry_after=error.retry_after)
    if isinstance(error, UpstreamDeadline):
        key = f"fetch.deadlines.{error.key}"
        return FillFailed("deadline", str(error), key=key, limit=f"{error.value:g}")
    if isinstance(error, UpstreamProtocol):
        return FillFailed("protocol", str(error))
    if isinstance(error, RefusedTarget):
        return FillFailed("refused", str(error))
    return FillFailed("upstream", str(error))


def outcome_of(error: RegistryError) -> Outcome:
    """The outcome of a range whose token or redirect failed."""
    if isinstance(error, UpstreamDenied):
        return Outcome(Ending.STATUS, str(error), status=403)
    if isinstance(error, RefusedTarget):
        return Outcome(Ending.REFUSED, str(error))
    if isinstance(error, UpstreamThrottled):
        return Outcome(Ending.STATUS, status=429, retry_after=f"{error.retry_after:.0f}")
    if isinstance(error, UpstreamDeadline):
        return Outcome(Ending.DEADLINE, str(error), key=error.key, value=f"{error.value:g}")
    if isinstance(error, UpstreamProtocol):
        return Outcome(Ending.PROTOCOL, str(error))
    return Outcome(Ending.NETWORK, str(error))
