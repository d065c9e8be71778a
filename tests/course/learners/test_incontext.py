import math

import pytest
import torch
from torch import Tensor

from cs330ray.course.learners import incontext
from cs330ray.course.learners.incontext import PROBE_TOKENS, Asking

ASKING = Asking("qa")
SHOTS = [("Where is Ann?", "hall"), ("Where is Bob?", "attic"), ("Where is Cid?", "hall")]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Scripted:
    """A decoder whose texts and chances are known by the first person of its prefix: Ann, Bob or Cid."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.first = prefix.split()[2].rstrip("?")

    def sample(self, count: int, *, max_new_tokens: int, stop: str, temperature: float, **_: object) -> list[str]:
        assert (max_new_tokens, stop, temperature) == (PROBE_TOKENS, "In the", 1.0)
        return [f" Who saw {self.first} {at}? In the barn. And" for at in range(count)]

    def chances(self, questions: list[str], answers: list[str], *, batch: int) -> Tensor:
        assert answers == ["attic", "hall"]
        assert batch == 3
        self.asked = questions
        sure = {"Ann": [[0.9, 0.1]], "Bob": [[0.6, 0.4]], "Cid": [[0.2, 0.8], [0.8, 0.2]]}[self.first]
        return torch.tensor((sure * len(questions))[: len(questions)])


def test_a_prompt_is_examples_and_a_question_in_one_style():
    prefix = ASKING.prefix(SHOTS[:2])
    assert prefix + ASKING.prompt("Where is Dan?") == (
        "Where is Ann? In the hall. Where is Bob? In the attic. Where is Dan? In the"
    )


@pytest.mark.parametrize(("shots", "count", "found"), [(4, 10, 10), (3, 10, 6), (1, 5, 1), (0, 5, 1)])
def test_orderings_are_different_permutations_and_at_most_all(shots, count, found):
    orders = incontext.orders(shots, count, seeded())
    assert len({tuple(order) for order in orders}) == len(orders) == found
    assert all(sorted(order) == list(range(shots)) for order in orders)


def test_the_first_candidate_is_the_ordering_of_the_seed():
    (first, *_) = incontext.orders(8, 4, seeded(7))
    assert first == torch.randperm(8, generator=seeded(7)).tolist()


@pytest.mark.parametrize(
    ("chances", "global_", "local"),
    [
        ([[0.9, 0.1], [0.8, 0.2]], 0.0, (math.log(10) - 0.9 * math.log(9) + math.log(5) - 0.8 * math.log(4)) / 2),
        ([[1.0, 0.0], [0.0, 1.0]], math.log(2), 0.0),
        ([[0.5, 0.5]] * 3, 0.0, math.log(2)),
        ([[0.6, 0.4], [0.4, 0.6], [0.7, 0.3], [0.9, 0.1]], math.log(4) - 0.75 * math.log(3), None),
        ([[1.0], [1.0]], 0.0, 0.0),
    ],
)
def test_entropies_are_those_of_lu_et_al(chances, global_, local):
    chances_BN = torch.tensor(chances, dtype=torch.float64)
    assert incontext.global_entropy(chances_BN) == pytest.approx(global_, abs=1e-12)
    if local is not None:
        assert incontext.local_entropy(chances_BN) == pytest.approx(local, abs=1e-12)


@pytest.mark.parametrize(
    ("ordering", "taken", "entropy"),
    [
        ("globalE", [2, 0, 1], math.log(2)),  # behind Cid the two answers are predicted in turn
        ("localE", [1, 2, 0], math.log(5) - 0.6 * math.log(3) - 0.4 * math.log(2)),  # behind Bob it is least sure
    ],
)
def test_the_candidate_of_the_highest_entropy_is_taken(ordering, taken, entropy):
    choice = incontext.choose(
        ordering, [[0, 1, 2], [1, 2, 0], [2, 0, 1]], SHOTS, ASKING, Scripted, probes=2, batch=3, generator=seeded()
    )
    assert choice.order == taken
    assert choice.entropy == pytest.approx(entropy, abs=1e-6)


def test_every_candidate_is_judged_by_the_texts_of_all_without_their_answers():
    made: list[Scripted] = []

    def behind(prefix: str) -> Scripted:
        made.append(Scripted(prefix))
        return made[-1]

    incontext.choose("globalE", [[0, 1, 2], [1, 0, 2]], SHOTS, ASKING, behind, probes=2, batch=3, generator=seeded())
    questions = [f"Who saw {first} {at}? In the" for first in ("Ann", "Bob") for at in range(2)]
    assert [decoder.asked for decoder in made] == [questions, questions]


def test_of_equal_candidates_the_first_is_taken():
    choice = incontext.choose(
        "globalE", [[0, 1, 2], [0, 2, 1]], SHOTS, ASKING, Scripted, probes=1, batch=3, generator=seeded()
    )
    assert choice.order == [0, 1, 2]
