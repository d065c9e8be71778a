"""Decoding in batches that are padded on the left, behind a prefix whose keys and values are computed once."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice, takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cs330ray.course.learners import attention
from cs330ray.course.learners.attention import Moment
from cs330ray.course.learners.prompts import Asking
from cs330ray.errors import Diverged, SpecError

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

PERIOD = Asking("none")  # an answer ends at a period
Pick = Callable[[Tensor], Tensor]  # logits (B, V) -> the next token of each row (B,)


def greedy(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch: int,
    window: int,
    prefix: str = "",
    asking: Asking = PERIOD,
) -> list[str]:
    """Continue `prefix` + each prompt by its most likely tokens: what comes before the first period, without blanks.

    Or before what else ends an answer of `asking`. Ends earlier at the end of the text, and after `max_new_tokens`.
    Raises SpecError where a prompt does not fit into `window` tokens, Diverged where the model no longer gives finite
    logits.
    """
    decoder = Decoder(model, tokenizer, window=window, prefix=prefix, asking=asking)
    return decoder.greedy(prompts, max_new_tokens=max_new_tokens, batch=batch)


class Decoder:
    """A model behind one prefix, whose keys and values it computes once, at the first prompt."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        window: int,
        prefix: str = "",
        asking: Asking = PERIOD,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.window = window
        self.prefix = prefix
        self.asking = asking
        self._read: dict[str, list[int]] = {}  # what was tokenised
        self._prefix_ids = self._ids(prefix) if prefix else []
        self._ends = _ends(model, tokenizer) | asking.ends(tokenizer)

    def tokens(self, prompts: Sequence[str]) -> list[int]:
        """Count the tokens of the prefix and each prompt together."""
        return [len(self._ids(self.prefix + prompt)) for prompt in prompts]

    def check(self, prompts: Sequence[str], *, max_new_tokens: int) -> None:
        """Raise SpecError, with the numbers, where the longest prompt and its answer exceed the window."""
        longest = max(self.tokens(prompts), default=0)
        over = longest + max_new_tokens - self.window
        if over > 0:
            raise SpecError(
                f"prompt: at most {self.window} tokens fit the model's window, but got {longest} of the longest prompt "
                f"+ {max_new_tokens} new ones, {over} too many; lower shots, take shorter texts, or drop whole examples"
            )

    def greedy(self, prompts: Sequence[str], *, max_new_tokens: int, batch: int) -> list[str]:
        """Answer each prompt as the function `greedy` does; prompts of similar length go `batch` at a time."""
        self.check(prompts, max_new_tokens=max_new_tokens)
        answers = [""] * len(prompts)
        with attention.reading(self.model):
            shared, own = self._divide([self.prefix + prompt for prompt in prompts])
            for rows in _batches(own, batch):
                stop = self.asking.stop
                texts = self._write(shared, [own[row] for row in rows], _most_likely, max_new_tokens, stop=stop)
                for row, text in zip(rows, texts, strict=True):
                    answers[row] = (text if stop is None else text.partition(stop)[0]).strip()
        return answers

    def logits(self, prompts: Sequence[str], *, batch: int) -> Tensor:
        """Score the token that follows the prefix and each prompt: (B, V), on the CPU."""
        return self._logits_after(prompts, [], batch)

    def chances(self, prompts: Sequence[str], answers: Sequence[str], *, batch: int) -> Tensor:
        """Probability of each answer after the prefix and each prompt, given that it is one of them: (B, N).

        An answer counts by its first token in which the answers differ; answers that have it in common are one.
        """
        after = [self._after(prompts[0], f" {answer}.") for answer in answers]
        start = _start(after)
        tokens = sorted({ids[len(start)] for ids in after})
        return self._logits_after(prompts, start, batch)[:, tokens].double().softmax(dim=-1)

    def sample(
        self, count: int, *, max_new_tokens: int, stop: str, temperature: float, batch: int, generator: torch.Generator
    ) -> list[str]:
        """Draw `count` texts that the model itself writes after the prefix, until `stop` stands in them.

        They end earlier at the end of the text, and after `max_new_tokens`. A blank at the end of the prefix is left to
        their first token.
        """

        def pick(logits_BV: Tensor) -> Tensor:
            chances_BV = (logits_BV.cpu().double() / temperature).softmax(dim=-1)
            return torch.multinomial(chances_BV, 1, generator=generator)[:, 0].to(logits_BV.device)

        self.check([""], max_new_tokens=max_new_tokens)
        texts: list[str] = []
        with attention.reading(self.model):
            shared, own = self._divide([self.prefix.rstrip()])
            for first in range(0, count, batch):
                rows = own * min(batch, count - first)
                texts += self._write(shared, rows, pick, max_new_tokens, stop=stop)
        return texts

    @cached_property
    def _prefix_cache(self) -> "Cache":
        """The keys and values of the whole prefix, one row."""
        ids_1L = torch.tensor([self._prefix_ids], device=self.model.device)
        cache = _new_cache()
        positions_1L = torch.arange(ids_1L.shape[1], device=self.model.device)[None]
        self._forward(ids_1L, cache, Moment(None, 0, positions_1L, positions_1L))
        return cache

    def _logits_after(self, prompts: Sequence[str], start: Sequence[int], batch: int) -> Tensor:
        self.check(prompts, max_new_tokens=len(start) + 1)
        found: dict[int, Tensor] = {}
        with attention.reading(self.model):
            shared, own = self._divide([self.prefix + prompt for prompt in prompts])
            for rows in _batches(own, batch):
                _, logits_BV = next(self._steps(shared, [[*own[row], *start] for row in rows], _most_likely))
                found.update(zip(rows, logits_BV.cpu(), strict=True))
        return torch.stack([found[row] for row in range(len(prompts))])

    def _after(self, prompt: str, continuation: str) -> list[int]:
        """The tokens of a continuation that begins with a blank, as they stand after a prompt."""
        ids = self._ids(prompt)
        return self._ids(prompt + continuation)[len(ids) :]

    def _ids(self, text: str) -> list[int]:
        if text not in self._read:
            self._read[text] = self.asking.tokens(self.tokenizer, text)
        return self._read[text]

    def _divide(self, texts: Sequence[str]) -> tuple[int, list[list[int]]]:
        """How many tokens of the prefix all texts share, and what each has after them: at least one token.

        A token may reach over the end of the prefix (a blank joins the word after it), so each text is read whole.
        """
        whole = [self._ids(text) for text in texts]
        shared = min((_common(self._prefix_ids, ids) for ids in whole), default=0)
        return shared, [ids[shared:] for ids in whole]

    def _write(
        self, shared: int, own: Sequence[Sequence[int]], pick: Pick, max_new_tokens: int, *, stop: str | None
    ) -> list[str]:
        """Continue each row until every one has ended: by an end of text, by `stop` in what it wrote, or by length."""
        written: list[list[int]] = [[] for _ in own]
        texts = [""] * len(own)
        ended = [False] * len(own)
        for tokens_B, _ in islice(self._steps(shared, own, pick), max_new_tokens):
            for row, token in enumerate(tokens_B.tolist()):
                ended[row] |= token in self._ends
                if not ended[row]:
                    written[row].append(token)
                    texts[row] = str(self.tokenizer.decode(written[row], skip_special_tokens=True))
                    ended[row] = stop is not None and stop in texts[row]
            if all(ended):
                break
        return texts

    def _steps(self, shared: int, own: Sequence[Sequence[int]], pick: Pick) -> Iterator[tuple[Tensor, Tensor]]:
        """Read the rows behind the prefix, then what was picked: the next tokens (B,) and their logits (B, V)."""
        device = self.model.device
        length = max(len(ids) for ids in own)
        pads = [length - len(ids) for ids in own]
        ids_BL = torch.tensor(
            [[self.tokenizer.pad_token_id] * pad + list(ids) for pad, ids in zip(pads, own, strict=True)], device=device
        )
        positions_BL = shared + torch.arange(length, device=device) - torch.tensor(pads, device=device)[:, None]
        own_BK, cache = positions_BL, _new_cache()
        prefix = self._prefix_cache if shared else None
        while True:
            logits_BV = self._forward(ids_BL, cache, Moment(prefix, shared, positions_BL, own_BK))
            tokens_B = pick(logits_BV)
            yield tokens_B, logits_BV
            ids_BL, positions_BL = tokens_B[:, None], positions_BL[:, -1:] + 1
            own_BK = torch.cat([own_BK, positions_BL], dim=1)

    @torch.no_grad()
    def _forward(self, ids_BL: Tensor, cache: "Cache", moment: Moment) -> Tensor:
        """Read tokens into the cache; the logits after the last of each row (B, V). Raises Diverged."""
        with attention.at(moment):
            logits_BLV: Tensor = self.model(
                input_ids=ids_BL,
                position_ids=moment.query_BL.clamp(min=0),  # padding stands before the first position
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        if not logits_BLV.isfinite().all():
            raise Diverged("the model's logits are not finite")
        return logits_BLV[:, -1]


def _new_cache() -> "Cache":
    from transformers import DynamicCache  # here: transformers takes seconds to import

    return DynamicCache()


def _ends(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Which tokens end a text, by the model and by its tokenizer."""
    generation = getattr(model, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None)
    known = ends if isinstance(ends, list) else [ends]
    return {end for end in [*known, tokenizer.eos_token_id] if end is not None}


def _common(prefix: Sequence[int], ids: Sequence[int]) -> int:
    """How many first tokens are the same, leaving one to `ids`."""
    pairs = zip(prefix, ids[:-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _start(rows: Sequence[Sequence[int]]) -> list[int]:
    """The first tokens that all rows have, leaving one to each."""
    columns = zip(*(row[:-1] for row in rows), strict=False)
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]


def _batches(own: Sequence[Sequence[int]], batch: int) -> Iterator[list[int]]:
    """Row numbers from the shortest to the longest, `batch` at a time: little padding, and always the same."""
    order = sorted(range(len(own)), key=lambda row: len(own[row]))
    for first in range(0, len(order), batch):
        yield order[first : first + batch]


def _most_likely(logits_BV: Tensor) -> Tensor:
    return logits_BV.argmax(dim=-1)
