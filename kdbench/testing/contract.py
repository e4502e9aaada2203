"""What all contracts share: a subject, or several cases of it, for which every inherited test runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest


class Contract:
    """Base of contracts. A test class that inherits one names what is tested, or several by name in `cases`.

    `subject` is the name of that attribute, and of the argument that every test of the contract takes.
    """

    subject: ClassVar[str]
    cases: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def found(cls) -> dict[str, Any]:
        """The cases by name.

        Raises:
            pytest.Collector.CollectError: with a sentence: there is none, or one is no subject of this contract.
        """
        one = getattr(cls, cls.subject, None)
        found = dict(cls.cases) or ({} if one is None else {cls.title(one): one})
        if not found:
            raise pytest.Collector.CollectError(
                f"{cls.__name__} names nothing to test: write `{cls.subject} = ...` in it, or `cases = {{name: ...}}`"
            )
        for name, value in found.items():
            if sentence := cls.unfit(value):
                raise pytest.Collector.CollectError(f"{cls.__name__}, case {name}: {sentence}")
        return found

    @classmethod
    def title(cls, value: Any) -> str:
        """How a single subject is called in the names of tests."""
        return value if isinstance(value, str) else type(value).__name__

    @classmethod
    def unfit(cls, value: Any) -> str:
        """Why a value is no subject, as a sentence; "" where it is one."""
        return ""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if self.subject in metafunc.fixturenames:
            found = self.found()
            metafunc.parametrize(self.subject, list(found.values()), ids=list(found))


def explained(error: BaseException, what: str = "") -> None:
    """Raises AssertionError unless a refusal explains itself: one line, more than five words."""
    said = str(error)
    assert "\n" not in said and len(said.split()) > 5, f"{what} is refused without a sentence: {said!r}"  # noqa: PT018
