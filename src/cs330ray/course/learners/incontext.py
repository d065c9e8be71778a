"""In-context learning: answers behind examples in the prompt, in a seeded order or one chosen by entropy.

Lu et al. 2022, "Fantastically Ordered Prompts and Where to Find Them", choose among orderings without any labels. Each
candidate ordering has the model write texts of its own behind the examples, whose answers are dropped; the texts of
all candidates are the probing set. A candidate is then judged by how it answers the whole set: globalE is the entropy
of the answers it predicts, counted over the set, and localE the mean entropy of its single predictions. The highest
is taken: an ordering that always gives one answer, or is sure of all, leans to what the examples happen to say.

Here the candidates are drawn by the seed, the texts are sampled at temperature 1, and the answers are those that occur
among the examples, each by its first token in which they differ.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import factorial
from typing import Literal

import torch
from torch import Tensor

from cs330ray.course.learners import prompts
from cs330ray.course.learners.decoding import Decoder
from cs330ray.course.learners.prompts import Asking

Ordering = Literal["seed", "globalE", "localE"]

PROBE_TOKENS = 64  # that a candidate's own text may have
PROBE_ROOM = 2 * PROBE_TOKENS  # behind the examples: read again it may have more, and an answer follows


@dataclass(frozen=True)
class Choice:
    """The ordering that was taken, and the entropy that spoke for it (nats)."""

    order: list[int]
    entropy: float


def orders(shots: int, count: int, generator: torch.Generator) -> list[list[int]]:
    """Draw `count` different orderings of the examples, or all where there are fewer."""
    found: list[list[int]] = []
    while len(found) < min(count, factorial(shots)):
        order = torch.randperm(shots, generator=generator).tolist()
        if order not in found:
            found.append(order)
    return found


def choose(
    ordering: Literal["globalE", "localE"],
    candidates: Sequence[list[int]],
    shots: Sequence[tuple[str, str]],
    asking: Asking,
    behind: Callable[[str], Decoder],
    *,
    probes: int,
    batch: int,
    generator: torch.Generator,
) -> Choice:
    """Take the candidate of the highest entropy, the first of equals; each writes `probes` texts of the probing set.

    `behind` makes a decoder behind a prefix.
    """
    decoders = [behind(asking.prefix([shots[at] for at in order])) for order in candidates]
    questions = [
        asking.prompt(prompts.first_text(asking.style, written, asking.template))
        for decoder in decoders
        for written in decoder.sample(
            probes,
            max_new_tokens=PROBE_TOKENS,
            stop=prompts.ending(asking.style, asking.template),
            temperature=1.0,
            batch=batch,
            generator=generator,
        )
    ]
    answers = sorted({answer for _, answer in shots})
    entropy = global_entropy if ordering == "globalE" else local_entropy
    entropies = [entropy(decoder.chances(questions, answers, batch=batch)) for decoder in decoders]
    best = max(range(len(entropies)), key=entropies.__getitem__)
    return Choice(candidates[best], entropies[best])


def global_entropy(chances_BN: Tensor) -> float:
    """Entropy of the answers that are predicted, counted over the probing set: between 0 and log N."""
    counts_N = chances_BN.argmax(dim=-1).bincount(minlength=chances_BN.shape[-1])
    return float(_entropy(counts_N.double() / len(chances_BN)))


def local_entropy(chances_BN: Tensor) -> float:
    """Mean entropy of the single predictions: between 0 and log N."""
    return float(_entropy(chances_BN).mean())


def _entropy(chances_N: Tensor) -> Tensor:
    return torch.xlogy(chances_N, chances_N).sum(dim=-1).abs()
