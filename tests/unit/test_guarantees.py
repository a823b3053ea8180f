import pytest

from headwater.contracts.model import Contract
from headwater.errors import PromiseError
from headwater.guarantees import broken_promises, effective, refuse_broken_promises
from headwater.protocols import Guarantee

CONTRACT = Contract.model_validate(
    {
        "stream": "a.b",
        "version": 1,
        "key": ["id"],
        "delivery": "exactly_once",
        "changes": "every",
        "deletes": "seen",
        "fields": {"id": {"type": "int64"}},
    }
)


def test_the_weakest_hop_decides_each_promise() -> None:
    path = effective(
        Guarantee("exactly_once", "latest", "seen", ("polls see the latest state",)),
        Guarantee("at_least_once", "every", "unseen", ("deletes are not seen",)),
    )
    assert path == Guarantee(
        "at_least_once", "latest", "unseen", ("polls see the latest state", "deletes are not seen")
    )


def test_a_path_that_gives_what_is_promised_is_accepted() -> None:
    refuse_broken_promises(CONTRACT, Guarantee("exactly_once"))


def test_each_promise_that_cannot_be_kept_is_named() -> None:
    given = Guarantee("best_effort", "latest", "unseen", ("hard deletes are not seen",))
    assert broken_promises(CONTRACT, given) == [
        "it promises `delivery: exactly_once`, its path gives `best_effort`",
        "it promises `changes: every`, its path gives `latest`",
        "it promises `deletes: seen`, its path gives `unseen`",
    ]
    with pytest.raises(PromiseError, match="a.b v1") as caught:
        refuse_broken_promises(CONTRACT, given)
    assert "hard deletes are not seen" in caught.value.hint
