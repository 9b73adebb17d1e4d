"""What a caller may ask for: images, platform, how much of them, how urgently, until when."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from headstart.command.complaint import BadValue, ConfigurationError, complaint, nearest
from headstart.command.platform import own_platform
from headstart.content.manifest import Platform
from headstart.content.reference import ImageReference
from headstart.content.sizes import format_duration, parse_duration
from headstart.registry.upstream import Upstream
from headstart.store.wire import PRIORITIES

MOST_IMAGES = 100
"""Images of one call; more are asked for in several calls."""

ALL_PLATFORMS = "all"

POLICIES = ("auto", "list", "landmark", "all", "none")
JOB_PRIORITIES = ("warm", "background", "prefetch")


def more_urgent(one: str, other: str) -> bool:
    """Whether priority ``one`` goes before ``other``."""
    return PRIORITIES.index(one) < PRIORITIES.index(other)


@dataclass(frozen=True, slots=True)
class WarmRequest:
    """``platform`` None is all of them, ``deadline`` is seconds from the call on."""

    images: tuple[ImageReference, ...]
    platform: Platform | None
    policy: str
    priority: str
    deadline: float | None
    ready: bool = False
    """Whether the images are to start from the mount: layer images are wanted, not blobs."""

    @classmethod
    def read(cls, value: object, upstreams: Mapping[str, Upstream]) -> Self:
        """Check the body of ``POST /warm``. Raises ConfigurationError with field and remedy."""
        refused = None
        try:
            body = _Body.model_validate(value)
        except ValidationError as refusal:
            refused = complaint(refusal, lambda _: None)
        if refused is not None:
            raise refused
        named = body.named
        for field, image in named.items():
            _check_upstream(field, image, upstreams)
        if body.ready and body.policy == "none":
            raise ConfigurationError(
                "ready",
                str(body.ready),
                "wants layers, of which policy none brings none",
                "leave out ready, or the policy",
            )
        images = tuple(dict.fromkeys(named.values()))
        return cls(images, body.platform, body.policy, body.priority, body.deadline, body.ready)

    @property
    def work(self) -> tuple[object, ...]:
        """Equal for requests of the same work, whatever their priority."""
        images = frozenset(map(str, self.images))
        return images, str(self.platform), self.policy, self.deadline, self.ready

    def as_json(self) -> dict[str, object]:
        """The body that :meth:`read` reads again."""
        return {
            "images": [str(image) for image in self.images],
            "platform": ALL_PLATFORMS if self.platform is None else str(self.platform),
            "policy": self.policy,
            "priority": self.priority,
            "deadline": None if self.deadline is None else format_duration(self.deadline),
            "ready": self.ready,
        }


def _check_upstream(field: str, image: ImageReference, upstreams: Mapping[str, Upstream]) -> None:
    upstream = upstreams.get(image.registry)
    if upstream is None:
        raise ConfigurationError(
            field,
            repr(str(image)),
            f"is in {image.registry}, which is not among the upstreams",
            f"name an image of {', '.join(upstreams)}",
        )
    if upstream.access == "passthrough":
        raise ConfigurationError(
            field,
            repr(str(image)),
            f"is in {image.registry}, which each client opens with its own credentials "
            "(access: passthrough); a warm job has none",
            f"give upstreams.{image.registry} credentials and access: shared",
        )


def _text(value: object, remedy: str) -> str:
    if not isinstance(value, str):
        raise BadValue(f"is of the wrong kind ({type(value).__name__})", remedy)
    return value


def _read_image(value: object) -> ImageReference:
    if isinstance(value, ImageReference):
        return value
    return ImageReference.parse(_text(value, "write REGISTRY/REPOSITORY:TAG"))


def _read_images(value: object) -> object:
    remedy = "write a list of names such as ghcr.io/team/app:1"
    if not isinstance(value, list | tuple):
        raise BadValue(f"is of the wrong kind ({type(value).__name__})", remedy)
    if not value:
        raise BadValue("names nothing", remedy)
    if len(value) > MOST_IMAGES:
        raise BadValue(
            f"names {len(value)} images", f"name at most {MOST_IMAGES} in one call, and call again"
        )
    return tuple(value)


def _read_platform(value: object) -> Platform | None:
    if value is None:
        return own_platform()
    if isinstance(value, Platform):
        return value
    text = _text(value, f"write OS/ARCHITECTURE such as linux/amd64, or {ALL_PLATFORMS}")
    return None if text == ALL_PLATFORMS else Platform.parse(text)


def _read_word(value: object, words: tuple[str, ...]) -> str:
    text = _text(value, f"write one of {', '.join(words)}")
    if text not in words:
        raise BadValue("is none of its words", nearest(text, words))
    return text


def _read_policy(value: object) -> str:
    return _read_word(value, POLICIES)


def _read_priority(value: object) -> str:
    return _read_word(value, JOB_PRIORITIES)


def _read_deadline(value: object) -> float | None:
    if value is None:
        return None
    remedy = "write a duration such as 90s or 10m"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadValue(f"is of the wrong kind ({type(value).__name__})", remedy)
    seconds = parse_duration(str(value))
    if seconds <= 0:
        raise BadValue("would end everything at once", remedy)
    return seconds


def _read_ready(value: object) -> bool:
    if not isinstance(value, bool):
        raise BadValue(f"is of the wrong kind ({type(value).__name__})", "write true or false")
    return value


class _Body(BaseModel):
    """The JSON object as it came."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    image: Annotated[ImageReference | None, BeforeValidator(_read_image)] = None
    images: Annotated[
        tuple[Annotated[ImageReference, BeforeValidator(_read_image)], ...],
        BeforeValidator(_read_images),
    ] = ()
    platform: Annotated[Platform | None, BeforeValidator(_read_platform)] = Field(
        default_factory=own_platform
    )
    policy: Annotated[str, BeforeValidator(_read_policy)] = "auto"
    priority: Annotated[str, BeforeValidator(_read_priority)] = "warm"
    deadline: Annotated[float | None, BeforeValidator(_read_deadline)] = None
    ready: Annotated[bool, BeforeValidator(_read_ready)] = False

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, value: Any) -> dict[str, Any]:
        """One of ``image`` and ``images``; an unknown key is named with the one that was meant."""
        remedy = "write image with one name, or images with a list"
        if not isinstance(value, dict):
            raise BadValue(f"is no JSON object ({type(value).__name__})", remedy)
        for key in value:
            if key not in cls.model_fields:
                raise BadValue(
                    "is no known key", nearest(str(key), cls.model_fields), below=(str(key),)
                )
        if ("image" in value) == ("images" in value):
            problem = "stands beside images" if "image" in value else "is missing"
            raise BadValue(problem, remedy, below=("image",))
        return value

    @property
    def named(self) -> dict[str, ImageReference]:
        """The images by the field that names each."""
        if self.image is not None:
            return {"image": self.image}
        return {f"images[{position}]": image for position, image in enumerate(self.images)}
