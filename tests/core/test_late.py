"""Checks and numbers that are read late: on a GPU they are copied and read later, on a CPU at once."""

import pytest
import torch

from ddim.core import late
from ddim.core.late import LAG, LateChecks, LateFlag, LateValues, late_checks, require


class Wrong(Exception):
    """What a failed check raises."""


class Event:
    """An event of a GPU that has always happened."""

    def synchronize(self) -> None:
        pass


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Flags are sent as on a GPU, without one."""
    monkeypatch.setattr(late, "_sent", lambda flag: (Event(), flag.clone()))


def flag(value: bool) -> torch.Tensor:
    return torch.tensor(value)


def test_on_a_cpu_a_check_raises_at_once():
    reached: list[int] = []

    def run() -> None:
        with late_checks():
            require(flag(True), Wrong)
            reached.append(1)
            require(flag(False), Wrong)
            reached.append(2)

    with pytest.raises(Wrong):
        run()
    assert reached == [1]


def test_outside_of_the_context_a_check_raises_at_once():
    with pytest.raises(Wrong):
        require(flag(False), Wrong)


@pytest.mark.usefixtures("gpu")
def test_a_check_is_read_when_enough_others_follow():
    checks = LateChecks()
    checks.add(flag(False), Wrong)
    for _ in range(LAG - 1):
        checks.add(flag(True), AssertionError)
    with pytest.raises(Wrong):
        checks.add(flag(True), AssertionError)


@pytest.mark.usefixtures("gpu")
def test_closing_reads_all_and_the_first_failure_counts():
    checks = LateChecks()
    checks.add(flag(True), AssertionError)
    checks.add(flag(False), Wrong)
    with pytest.raises(Wrong):
        checks.close()
    checks.close()  # nothing is left to read


@pytest.mark.usefixtures("gpu")
def test_an_error_of_the_block_is_not_replaced_by_a_late_check():
    def fail() -> None:
        with late_checks():
            late._current.get().add(flag(False), Wrong)  # type: ignore[union-attr]
            raise KeyError

    with pytest.raises(KeyError):
        fail()


def test_a_flag_on_a_cpu_is_read_at_once():
    more = LateFlag()
    assert [more(flag(value)) for value in (True, False, True)] == [True, False, True]


def test_a_flag_on_a_gpu_is_read_one_call_late(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(late, "_sent", lambda flag: (Event(), flag.value))

    class OnGPU:
        is_cuda = True

        def __init__(self, value: bool) -> None:
            self.value = value

    more = LateFlag()
    assert [more(OnGPU(value)) for value in (False, True, False)] == [True, False, True]  # type: ignore[arg-type]


# --- numbers --------------------------------------------------------------------------------------------------------


def test_on_a_cpu_no_number_is_late():
    values = LateValues[str]()
    assert values.add("first", torch.tensor([1.0, 2.0])) == [("first", [1.0, 2.0])]
    assert values.add("second", torch.tensor([3.0]), wait=True) == [("second", [3.0])]


class Sent:
    """What stands for a tensor on a GPU, and for the event that tells when its copy has arrived."""

    is_cuda = True

    def __init__(self, number: float) -> None:
        self.number, self.waited = number, False

    def synchronize(self) -> None:
        self.waited = True


def test_on_a_gpu_the_host_waits_for_the_oldest_numbers_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(late, "_sent", lambda values: (values, torch.tensor([values.number])))
    values, rounds = LateValues[int](), [Sent(float(k)) for k in range(6)]
    read = [values.add(k, sent) for k, sent in enumerate(rounds[:5])]  # type: ignore[arg-type]
    assert read == [[]] * LAG + [[(k, [float(k)])] for k in range(5 - LAG)]
    assert [sent.waited for sent in rounds] == [k < 5 - LAG for k in range(6)]
    rest = values.add(5, rounds[5], wait=True)  # type: ignore[arg-type]
    assert rest == [(k, [float(k)]) for k in range(5 - LAG, 6)]
    assert all(sent.waited for sent in rounds)
