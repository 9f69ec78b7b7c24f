"""What a test expects of an error or a warning, as data: its type, its parameter, and the values that it names.

A sentence may be reworded at any time, so a test names the parameter and the values, and not the words between them.
"""

import re
from types import TracebackType

import pytest

from ddim._utils.errors import DDIMError, DDIMWarning, InputError, NotFinite, UnknownName


def names(sentence: str, value: object) -> bool:
    """Whether a sentence names a value: ``3`` is not in "1.3", "30" or "x3", and ``cat`` is not in "cats"."""
    text = str(value)
    before = r"(?<!\w)(?<!\d\.)" if re.match(r"\w", text) else ""
    after = r"(?!\w)(?!\.\d)" if re.search(r"\w$", text) else ""
    return re.search(before + re.escape(text) + after, sentence) is not None


class refused:
    """A context manager that fails unless its block raises the error described.

    Args:
        parameter: the parameter that the error is about, or None for an error that is about no single one.
        values: what the sentence must name, as text: the value that cannot be used, the range, a file.
        kind: the type of the error. ``InputError``, the caller's mistake, by default.
        hint: True if the error must say what would do, False if it must not. None does not ask.

    ``with refused(...) as caught`` gives what ``pytest.raises`` gives. One object may be used several times, so that it
    can stand in the rows of ``pytest.mark.parametrize``.
    """

    def __init__(
        self,
        parameter: str | None = None,
        *values: object,
        kind: type[BaseException] = InputError,
        hint: bool | None = None,
    ) -> None:
        self.parameter, self.values, self.kind, self.hint = parameter, values, kind, hint

    def __repr__(self) -> str:  # the id of a row
        return "-".join([str(self.parameter), *map(str, self.values)])

    def __enter__(self) -> pytest.ExceptionInfo[BaseException]:
        self._raises = pytest.raises(self.kind)
        self._caught = self._raises.__enter__()
        return self._caught

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        expected = self._raises.__exit__(kind, error, trace)
        if expected and error is not None:
            self.check(error)
        return expected

    def check(self, error: BaseException) -> None:
        """Holds an error of the right type to the rest."""
        assert getattr(error, "parameter", None) == self.parameter, error
        for value in self.values:
            assert names(str(error), value), f"{value} is not named in: {error}"
        if self.hint is not None:
            assert isinstance(error, DDIMError)
            assert (error.hint is not None) == self.hint, error


class unknown(refused):
    """The same for a name that is in no registry.

    Args:
        parameter: as for ``refused``.
        name: the name that was given.
        values: as for ``refused``.
        nearest: the known name that the error must offer; None if it must offer none.
        hint: as for ``refused``.
    """

    def __init__(
        self,
        parameter: str,
        name: object,
        *values: object,
        nearest: str | None = None,
        hint: bool | None = None,
    ) -> None:
        super().__init__(parameter, f"{name!r}", *values, kind=UnknownName, hint=hint)
        self.name, self.nearest = name, nearest

    def check(self, error: BaseException) -> None:
        assert isinstance(error, UnknownName)
        assert error.name == self.name, error
        assert error.nearest == self.nearest, error
        super().check(error)


class failed(refused):
    """The same for a failure that is not the caller's mistake: a ``DDIMError`` that is no ``InputError``."""

    def __init__(self, parameter: str | None = None, *values: object, hint: bool | None = None) -> None:
        super().__init__(parameter, *values, kind=DDIMError, hint=hint)

    def check(self, error: BaseException) -> None:
        assert not isinstance(error, InputError), error
        super().check(error)


class not_finite(refused):
    """The same for numbers that stopped being finite in a step, counted from 1."""

    def __init__(self, step: int, *values: object, hint: bool | None = None) -> None:
        super().__init__(None, *values, kind=NotFinite, hint=hint)
        self.step = step

    def check(self, error: BaseException) -> None:
        assert isinstance(error, NotFinite)
        assert error.step == self.step, error
        super().check(error)


class warned:
    """A context manager that fails unless its block warns, and unless every warning of the kind names the values.

    Args:
        values: as for ``refused``.
        kind: the type of the warning.
    """

    def __init__(self, *values: object, kind: type[Warning] = DDIMWarning) -> None:
        self.values, self.kind = values, kind

    def __enter__(self) -> pytest.WarningsRecorder:
        self._warns = pytest.warns(self.kind)
        self._caught = self._warns.__enter__()
        return self._caught

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._warns.__exit__(kind, error, trace)
        if error is None:
            for said in (str(w.message) for w in self._caught if issubclass(w.category, self.kind)):
                for value in self.values:
                    assert names(said, value), f"{value} is not named in: {said}"
