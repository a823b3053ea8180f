import threading
from pathlib import Path
from typing import Any

import pytest

from headwater import requests
from headwater.errors import BusError, MappingError


def ask_beside(home: Path, handlers: dict[str, requests.Handler], what: str, **arguments: Any) -> dict[str, Any]:
    """`ask` while another thread answers, as a running pipeline does."""
    done = threading.Event()

    def answering() -> None:
        while not done.wait(0.01):
            requests.answer_all(home, handlers)

    thread = threading.Thread(target=answering)
    thread.start()
    try:
        return requests.ask(home, what, **arguments)
    finally:
        done.set()
        thread.join()


def test_the_answer_is_what_the_handler_gave(tmp_path: Path) -> None:
    handlers: dict[str, requests.Handler] = {"replay": lambda stream, numbers: {"stream": stream, "done": numbers}}
    answer = ask_beside(tmp_path, handlers, "replay", stream="a.b", numbers=[1, 2])
    assert answer == {"stream": "a.b", "done": [1, 2]}
    assert list((tmp_path / requests.DIRECTORY).iterdir()) == []


def test_an_error_of_ours_reaches_the_one_who_asked(tmp_path: Path) -> None:
    def refuse() -> dict[str, Any]:
        raise MappingError("stream a.b: no column `x`", hint="did you mean `y`?")

    with pytest.raises(BusError, match="no column `x`") as caught:
        ask_beside(tmp_path, {"replay": refuse}, "replay")
    assert caught.value.hint == "did you mean `y`?"


def test_a_request_that_is_not_known_is_answered(tmp_path: Path) -> None:
    with pytest.raises(BusError, match="does not know `dance`"):
        ask_beside(tmp_path, {}, "dance")


def test_without_an_answer_the_request_is_taken_back(tmp_path: Path) -> None:
    with pytest.raises(BusError, match="did not answer `replay`"):
        requests.ask(tmp_path, "replay", patience=0.05)
    assert list((tmp_path / requests.DIRECTORY).iterdir()) == []


def test_what_an_earlier_run_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / requests.DIRECTORY).mkdir()
    (tmp_path / requests.DIRECTORY / "x.request").write_text("{}")
    requests.clear(tmp_path)
    assert list((tmp_path / requests.DIRECTORY).iterdir()) == []


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyError("shop.none"), TypeError("numbers")])
def test_what_goes_wrong_with_a_request_is_its_own_error_and_ends_no_pipeline(tmp_path: Path, error: Exception) -> None:
    def fail() -> dict[str, Any]:
        raise error

    with pytest.raises(BusError, match=f"`replay` failed: {type(error).__name__}"):
        ask_beside(tmp_path, {"replay": fail}, "replay")
