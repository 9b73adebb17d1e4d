"""The one error of malformed input."""


class InvalidInput(ValueError):
    """Text from outside that does not have the form it must have; ``str()`` is one line.

    ``field`` says what it was meant to be, ``value`` is a bounded repetition of it, ``remedy`` says
    what to write instead.
    """

    def __init__(self, field: str, value: str, remedy: str) -> None:
        self.field = field
        self.value = value if len(value) <= 100 else value[:97] + "..."
        self.remedy = remedy
        super().__init__(f"{field} {self.value!r} is not valid; {remedy}")
