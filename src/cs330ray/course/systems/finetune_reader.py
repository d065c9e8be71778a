"""How fine-tuning reads texts: a question and its answer as tokens, as decoding has them, or a text of a class."""

from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING

from cs330ray.course.data.text import Example
from cs330ray.course.learners.lora import Encoded
from cs330ray.course.learners.prompts import Asking
from cs330ray.course.systems import language
from cs330ray.course.systems.configs.finetune import Config
from cs330ray.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Reader:
    """How texts become tokens."""

    config: Config  # resolved
    tokenizer: "PreTrainedTokenizerBase"
    window: int
    classes: tuple[str, ...]

    @cached_property
    def asking(self) -> Asking:
        """How questions are put."""
        config = self.config
        return language.asking(
            config.dataset, Asking(config.style, config.template), chat=config.chat, in_context=False,
            tokenizer=self.tokenizer, model=config.model,
        )  # fmt: skip

    def question(self, text: str) -> str:
        """What stands before an answer."""
        return self.asking.prefix(()) + self.asking.prompt(text)

    def cut(self, text: str) -> tuple[int, ...]:
        """The tokens of a text whose class is to be told, up to as many as are read."""
        most = min(self.config.max_tokens, self.window)
        return tuple(self.tokenizer(text, truncation=True, max_length=most)["input_ids"])

    def encode(self, example: Example, *, new_tokens: int = 0) -> Encoded:
        """Turn an example into tokens: the question's, as decoding reads it, and those that follow in the whole.

        Raises DataError where the question's tokens change with the answer behind it, and where it is longer than the
        model's window with its answer or with `new_tokens`.
        """
        config, place = self.config, self.config.texts.place(example)
        if config.classifies:
            return Encoded(self.cut(example.text), label=self.classes.index(example.answer))
        asking, question = self.asking, self.question(example.text)
        asked, whole = (
            asking.tokens(self.tokenizer, words)
            for words in (question, question + asking.answer(example.text, example.answer))
        )
        kept = next((at for at, token in enumerate(asked) if whole[at : at + 1] != [token]), len(asked))
        if kept < len(asked):
            raise DataError(
                f"{place}: a question must have the same tokens with an answer behind it, but "
                f"{config.model} changes the last {len(asked) - kept} of {len(asked)}; take another model or prompt"
            )
        answer = len(whole) - len(asked)
        most = max(answer, new_tokens)
        if len(asked) + most > self.window:
            shorter = "lower max_words" if config.data is None else "shorten it"
            lower = "lower max_new_tokens" if len(asked) + answer <= self.window else shorter
            raise DataError(
                f"{place}: prompt and answer must fit into the {self.window} tokens of "
                f"{config.model}, but have {len(asked)} + {most}; {lower} or take another model"
            )
        return Encoded(tuple(whole), answer=answer)

    def written(self, example: Example) -> str | None:
        """What decoding makes of the true answer where it writes that; None where it would not end with it."""
        if self.asking.stop is not None:
            answer, end, _ = self.asking.answer(example.text, example.answer).partition(self.asking.stop)
            return answer.strip() if end else None
        encoded, ends = self.encode(example), {self.tokenizer.eos_token_id, *self.asking.ends(self.tokenizer)}
        tokens = list(takewhile(lambda token: token not in ends, encoded.ids[len(encoded.ids) - encoded.answer :]))
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
