"""What an answer is worth: exact match after normalising, and the overlap of words with a summary."""

import re
import string
from functools import cache
from typing import Any

from cs330ray.errors import SpecError

ARTICLES = re.compile(r"\b(a|an|the)\b")
UNPUNCTUATED = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """Bring an answer to lower case without punctuation, articles and extra blanks, as SQuAD and CS330 compare them."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(UNPUNCTUATED)).split())


def exact_match(prediction: str, answer: str) -> bool:
    """Whether both are the same after normalising."""
    return normalise(prediction) == normalise(answer)


def fold(text: str) -> str:
    """Bring one's own text to single blanks and one case, without a period at its end: all other signs count."""
    folded = " ".join(text.split()).casefold()
    return folded.removesuffix(".") or folded


def same(prediction: str, answer: str) -> bool:
    """Whether both are the same text of one's own: -5 is not 5, nor C++ C, which `exact_match` takes for the same."""
    return fold(prediction) == fold(answer)


def rouge1(prediction: str, answer: str) -> float:
    """The F measure of the words that both have, stemmed: rouge1 by rouge-score, in [0, 1].

    Raises SpecError where rouge-score is not installed.
    """
    return float(_scorer().score(target=answer, prediction=prediction)["rouge1"].fmeasure)


@cache
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer  # here: it imports nltk, which takes its time
    except ImportError:
        raise SpecError("rouge1: rouge-score needs the extra: pip install 'cs330ray[lm]'") from None
    return RougeScorer(["rouge1"], use_stemmer=True)
