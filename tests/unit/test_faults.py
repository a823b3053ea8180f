import subprocess
import sys
from collections.abc import Iterator

import pytest

from headwater.faults import failpoint, set_failpoints


@pytest.fixture(autouse=True)
def _none_left() -> Iterator[None]:
    yield
    set_failpoints("")


def test_without_rules_nothing_happens() -> None:
    failpoint("bus.append")


def test_a_rule_fails_the_place_that_its_pattern_names() -> None:
    set_failpoints("bus.*=error")
    failpoint("sink.write")
    with pytest.raises(OSError, match="bus.append"):
        failpoint("bus.append")


def test_a_rule_with_a_count_ends() -> None:
    set_failpoints("bus.append=error:1:1")
    with pytest.raises(OSError, match="failpoint"):
        failpoint("bus.append")
    failpoint("bus.append")


def test_the_dice_are_seeded() -> None:
    def pattern() -> list[bool]:
        set_failpoints("x=error:0.5", seed=7)
        fell = []
        for _ in range(20):
            try:
                failpoint("x")
                fell.append(False)
            except OSError:
                fell.append(True)
        return fell

    first = pattern()
    assert first == pattern()
    assert {True, False} == set(first)


def test_kill_is_sigkill() -> None:
    script = "from headwater.faults import failpoint; failpoint('x'); print('alive')"
    ended = subprocess.run(
        [sys.executable, "-c", script], env={"HEADWATER_FAILPOINTS": "x=kill"}, capture_output=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (-9, b"")
