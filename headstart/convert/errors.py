"""Why an image cannot be read from a place or written to it.

::

    PlaceUnusable       what is there, or what is not
      ContentDamaged    bytes that do not have the digest by which they are named
"""


class PlaceUnusable(Exception):
    """A place that does not hold, or does not take, what is wanted; ``str()`` is one line.

    ``place`` is as people write it, ``problem`` says what is wrong there, ``remedy`` what helps.
    """

    def __init__(self, place: object, problem: str, remedy: str) -> None:
        self.place = str(place)
        self.problem = problem
        self.remedy = remedy
        text = f"{place} {problem}; {remedy}"
        super().__init__("".join(sign if sign.isprintable() else "?" for sign in text))


class ContentDamaged(PlaceUnusable):
    """Bytes that were read do not have the digest or size that they should have."""
