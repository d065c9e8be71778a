"""What 125 questions behind 16 examples cost, against the straightforward way: bAbI's first task, smollm2-135m.

    python benchmarks/incontext.py [--plain 15] [--smallest]

The plain way reads examples and question together, one prompt at a time, with a cache of keys and values within each
answer, and ends it at the first period as we do: faster than `generate`, which goes on to the last token. It takes
about 2 s a question, so it is timed on some questions only, spread evenly over the 125, on which the answers must be
the same; its time for all is that of the mean. Ours is timed on all, the reading of the examples included. Both turn
text into tokens within their time; loading the model is in neither. They take turns, a block of 25 questions and some
plain ones, so that a busy machine slows both; the figures are seconds for which the processor worked, on one thread.

Needs the weights and bAbI's archive, and says so where they are missing; at the smallest size the random model `tiny`
answers a few questions of `rooms`, which need neither. The last line is one JSON object: `ratio` is
plain over ours, `of_prefix` ours over the bare reading of the examples, once.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cs330ray.course.data import text
from cs330ray.course.learners.decoding import Decoder
from cs330ray.course.learners.incontext import Asking
from cs330ray.course.pretrained import models
from cs330ray.errors import Cs330rayError

NEW_TOKENS, BATCH, BLOCK = 6, 8, 25


@dataclass(frozen=True)
class Size:
    """What is asked of which model."""

    model: str = "smollm2-135m"
    dataset: str = "babi"
    shots: int = 16
    questions: int = 125


SMALLEST = Size("tiny", "rooms", shots=2, questions=4)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


@torch.no_grad()
def plain_answer(model: Any, tokenizer: Any, prompt: str) -> str:
    """One prompt alone, read whole; then token by token with its own cache."""
    ids_1L = torch.tensor([tokenizer(prompt)["input_ids"]], device=model.device)
    written: list[int] = []
    cache = None
    while len(written) < NEW_TOKENS:
        found = model(input_ids=ids_1L, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids_1L, cache = found.logits[:, -1:].argmax(dim=-1), found.past_key_values
        if ids_1L.item() == tokenizer.eos_token_id:
            break
        written.append(int(ids_1L.item()))
        if "." in tokenizer.decode(written, skip_special_tokens=True):
            break
    return tokenizer.decode(written, skip_special_tokens=True).partition(".")[0].strip()


def measure(
    model: Any, tokenizer: Any, prefix: str, questions: Sequence[str], plain: Sequence[int]
) -> tuple[float, list[float]]:
    """Seconds of ours for all questions, and of the plain way for each of some; they take turns. Checks the answers."""
    decoder = Decoder(model, tokenizer, window=models.window(model), prefix=prefix)
    ours_s, plain_s = 0.0, []
    for first in range(0, len(questions), BLOCK):
        block = questions[first : first + BLOCK]
        took, answers = seconds(lambda block=block: decoder.greedy(block, max_new_tokens=NEW_TOKENS, batch=BATCH))
        ours_s += took
        for at in (at for at in plain if first <= at < first + BLOCK):
            took, answer = seconds(lambda at=at: plain_answer(model, tokenizer, prefix + questions[at]))
            plain_s.append(took)
            if answer != answers[at - first]:
                raise SystemExit(f"question {at}: plain answers {answer!r}, we answer {answers[at - first]!r}")
    return ours_s, plain_s


def main(size: Size, plain: int) -> None:
    torch.set_num_threads(1)
    asking = Asking("qa")
    shots = text.draw(text.examples(size.dataset, "train", 0), size.shots, 0, classes=False)
    asked = text.examples(size.dataset, "val", 0)[: size.questions]
    questions = [asking.prompt(example.text) for example in asked]
    prefix = asking.prefix([(shot.text, shot.answer) for shot in shots])
    model, tokenizer = models.causal(size.model, device=torch.device("cpu"))
    some = [at * len(questions) // plain for at in range(plain)]
    plain_answer(model, tokenizer, questions[0])  # warms up
    ours_s, plain_s = measure(model, tokenizer, prefix, questions, some)
    ids_1L = torch.tensor([tokenizer(prefix)["input_ids"]])
    with torch.no_grad():
        prefix_s, _ = seconds(lambda: model(input_ids=ids_1L, logits_to_keep=1))
    tokens = [len(tokenizer(question)["input_ids"]) for question in questions]
    mean_s = sum(plain_s) / len(plain_s)
    print(
        f"{size.model}, {size.shots} examples of {ids_1L.shape[1]} tokens, {len(questions)} questions of {sum(tokens)}"
    )
    print(f"plain  {mean_s * len(questions):8.1f} s   ({mean_s:.2f} s a question, timed on {len(plain_s)})")
    print(f"ours   {ours_s:8.1f} s   ({ours_s / len(questions):.3f} s a question, all {len(questions)})")
    print(f"       the bare reading of the examples, once: {prefix_s:.1f} s; the same answers on {len(plain_s)}")
    report = {
        "ratio": round(mean_s * len(questions) / ours_s, 2),
        "of_prefix": round(ours_s / prefix_s, 2),
        "ours_s": round(ours_s, 2),
        "plain_question_s": round(mean_s, 3),
        "plain_questions": len(plain_s),
        "threads": 1,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--plain", type=int, default=15, choices=range(1, 126), metavar="1..125")
    parser.add_argument("--smallest", action="store_true", help="a tiny model, few questions: shows only that it runs")
    given = parser.parse_args()
    try:
        main(SMALLEST, SMALLEST.questions) if given.smallest else main(Size(), given.plain)
    except Cs330rayError as error:
        sys.exit(f"benchmarks/incontext.py: {error}")
