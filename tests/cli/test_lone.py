"""Where a lone trial lies: fields that came later move none that began before them."""

import pytest

from cs330ray.cli.trial import identity
from cs330ray.trial import named

BEFORE = {  # of version 0.1.0, with all defaults and seed 5
    "finetune": "aaa696b4ae4c",
    "icl": "89cf099a18c8",
    "multitask": "451a8d36d93e",
}
CHANGES = {
    "finetune": {"precision": "bf16"},
    "icl": {"precision": "bf16"},
    "multitask": {"user_column": "who"},
}


@pytest.mark.parametrize("system", BEFORE)
def test_a_lone_trial_is_found_where_an_earlier_version_left_it(system: str) -> None:
    config = named.load(system).Config
    assert identity(system, config(), 5) == BEFORE[system]
    assert identity(system, config.model_construct(**{**config().model_dump(), **CHANGES[system]}), 5) != BEFORE[system]
