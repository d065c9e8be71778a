"""A message is one line whatever it quotes."""

import pickle

import pytest

from cs330ray.errors import CheckpointError, DataError, LedgerError, SpecError

ERRORS = (SpecError, DataError, LedgerError, CheckpointError)
each = pytest.mark.parametrize("error", ERRORS)


@each
def test_what_cannot_be_printed_is_escaped(error):
    message = str(error("a\nb\r\x1b[31m\u2028\ud800: must be é, but is not; mend it"))
    assert message == r"a\nb\r\x1b[31m\u2028\ud800: must be é, but is not; mend it"
    assert message.isprintable()


@each
def test_an_endless_message_keeps_its_place_and_its_next_step(error):
    message = str(error(f"file.toml: seed must be a number, but got {'9' * 10**6}; mend it"))
    assert message.startswith("file.toml: seed must be")
    assert message.endswith("; mend it")
    assert len(message) < 2100


@each
def test_a_message_is_the_same_in_another_process(error):
    assert str(pickle.loads(pickle.dumps(error("a\nb")))) == "a\\nb"
