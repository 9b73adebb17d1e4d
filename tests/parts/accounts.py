"""Accounts of test registries."""

import base64
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Account:
    """A user who may push and pull."""

    username: str
    password: str

    def __str__(self) -> str:
        """``username:password``, as the clients' options want it."""
        return f"{self.username}:{self.password}"

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(str(self).encode()).decode()
