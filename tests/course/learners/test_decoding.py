import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from cs330ray.course.learners import attention
from cs330ray.course.learners.decoding import Decoder, greedy
from cs330ray.errors import Diverged, SpecError

PAD, END = 256, 257
PREFIX = "John went to the hall. Where is John? In the hall. "
PROMPTS = [
    "Where? In the",
    "Sandra went to the kitchen, and then to the garden. Where is Sandra? In the",
    "x",
    "Mary ran to the pantry. Where is Mary? In the",
    "Mary ran to the cellar. Where is Mary? In the",
]
SHAPE = {
    "vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3, "bos_token_id": None,
    "eos_token_id": END, "pad_token_id": PAD,
}  # fmt: skip
SLIDING = {"head_dim": 8, "sliding_window": 16}


class Bytes:
    """A tokenizer whose tokens are bytes."""

    pad_token_id, eos_token_id = PAD, END

    def __call__(self, text: str, verbose: bool = True) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return bytes(token for token in ids if token < PAD).decode("latin1")


class Words(Bytes):
    """A tokenizer whose tokens are words with the blank before them, known from 0 as they come."""

    def __init__(self) -> None:
        self.known: list[str] = []

    def __call__(self, text: str, verbose: bool = True) -> dict[str, list[int]]:
        words = re.findall(r" ?[^ ]+| ", text)
        self.known += [word for word in dict.fromkeys(words) if word not in self.known]
        return {"input_ids": [self.known.index(word) for word in words]}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(self.known[token] if token < len(self.known) else "?" for token in ids)


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))


def gpt2() -> Any:
    """Whose positions are learned, and whose heads each have keys of their own."""
    ends = {"bos_token_id": None, "eos_token_id": END}
    shape = {"vocab_size": 258, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.3}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **ends))


def gemma2() -> Any:
    """Whose scores are capped, and every second layer of which sees 16 tokens back."""
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SHAPE, **SLIDING))


def gemma3() -> Any:
    """Two of whose three layers see 16 tokens back."""
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**SHAPE, **SLIDING, layer_types=layers))


def mistral() -> Any:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**SHAPE, sliding_window=16))


def made(model: Callable[[], Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model().eval()


each = pytest.mark.parametrize("model", [llama, gpt2, gemma2, gemma3, mistral])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are tiny, and the machine may be busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@torch.no_grad()
def plain_logits(model: Any, text: str) -> Tensor:
    """As transformers computes them: the whole text at once, without a cache, padding or other rows."""
    return model(torch.tensor([list(text.encode())])).logits[0, -1]


def plain_answer(model: Any, text: str, new: int) -> str:
    ids = list(text.encode())
    start = len(ids)
    while len(ids) < start + new and ord(".") not in ids[start:]:
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == END:
            break
        ids.append(token)
    return Bytes().decode(ids[start:]).partition(".")[0].strip()


@each
@pytest.mark.parametrize("prefix", [PREFIX, ""])
@pytest.mark.parametrize("batch", [2, 5])
def test_logits_behind_a_cached_prefix_are_those_of_the_whole_text(model, prefix, batch):
    tiny = made(model)
    found_BV = Decoder(tiny, Bytes(), window=512, prefix=prefix).logits(PROMPTS, batch=batch)
    expected_BV = torch.stack([plain_logits(tiny, prefix + prompt) for prompt in PROMPTS])
    assert (found_BV - expected_BV).abs().max() < 1e-4
    assert expected_BV.std(dim=0).mean() > 0.1  # the prompts differ in what follows


@each
@pytest.mark.parametrize("prefix", [PREFIX, ""])
def test_a_padded_batch_is_answered_as_each_question_alone(model, prefix):
    tiny = made(model)
    together = greedy(tiny, Bytes(), PROMPTS, max_new_tokens=6, batch=3, window=512, prefix=prefix)
    alone = [
        greedy(tiny, Bytes(), [prompt], max_new_tokens=6, batch=1, window=512, prefix=prefix)[0] for prompt in PROMPTS
    ]
    assert together == alone == [plain_answer(tiny, prefix + prompt, 6) for prompt in PROMPTS]
    assert len(set(together)) > 1


@each
def test_scores_computed_a_few_at_a_time_are_the_same(model, monkeypatch):
    tiny = made(model)
    whole_BV = Decoder(tiny, Bytes(), window=512, prefix=PREFIX).logits(PROMPTS, batch=5)
    monkeypatch.setattr(attention, "CPU_SCORES_AT_ONCE", 1000)  # two queries of the prefix
    assert torch.allclose(
        Decoder(tiny, Bytes(), window=512, prefix=PREFIX).logits(PROMPTS, batch=5), whole_BV, atol=1e-5
    )


def test_the_prefix_is_read_once_for_all_batches_and_calls():
    tiny = made(llama)
    read: list[tuple[int, ...]] = []
    tiny.register_forward_pre_hook(lambda _, __, named: read.append(tuple(named["input_ids"].shape)), with_kwargs=True)
    decoder = Decoder(tiny, Bytes(), window=512, prefix=PREFIX)
    for _ in range(2):
        decoder.greedy(PROMPTS, max_new_tokens=1, batch=2)
    lengths = sorted(len(prompt) for prompt in PROMPTS)
    batches = [(2, lengths[1]), (2, lengths[3]), (1, lengths[4])]
    assert read == [(1, len(PREFIX)), *batches, *batches]


def test_of_a_prompt_only_the_last_logits_are_computed():
    tiny = made(llama)
    seen: list[int] = []
    tiny.lm_head.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    greedy(tiny, Bytes(), PROMPTS, max_new_tokens=3, batch=5, window=512, prefix=PREFIX)
    assert set(seen) == {1}


def test_a_token_that_reaches_over_the_end_of_the_prefix_is_read_whole():
    tiny, words = made(llama), Words()
    prefix, prompts = "a b c ", ["d e", "f g h"]  # " " ends the prefix alone, " d" begins a question with it
    found_BV = Decoder(tiny, words, window=512, prefix=prefix).logits(prompts, batch=2)
    with torch.no_grad():
        expected_BV = torch.stack(
            [tiny(torch.tensor([words(prefix + prompt)["input_ids"]])).logits[0, -1] for prompt in prompts]
        )
    assert torch.allclose(found_BV, expected_BV, atol=1e-5)


def test_similar_lengths_go_together():
    tiny = made(llama)
    shapes: list[tuple[int, ...]] = []
    tiny.register_forward_pre_hook(
        lambda _, __, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    Decoder(tiny, Bytes(), window=512).logits(["aaaa", "b", "cccc", "d", "eee"], batch=2)
    assert shapes == [(2, 1), (2, 4), (1, 4)]


# What a rigged model writes


class Chain(torch.nn.Module):
    """A model in which each token is followed by the next of a text, or whose next token has the given chances."""

    def __init__(self, text: list[int] | None = None, chances: Tensor | None = None) -> None:
        super().__init__()
        self.text, self.chances = text or [], chances
        self.config = SimpleNamespace(_attn_implementation="sdpa", model_type="chain", layer_types=None)
        self.generation_config = SimpleNamespace(eos_token_id=[END])
        self.device = torch.device("cpu")

    def set_attn_implementation(self, name: str) -> None:
        self.config._attn_implementation = name

    def forward(self, input_ids: Tensor, **_: object) -> object:
        logits_BLV = torch.full((len(input_ids), 1, 258), -1e9)
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if self.chances is not None:
                logits_BLV[row, 0, : len(self.chances)] = self.chances.log()
            else:
                logits_BLV[row, 0, self.text[self.text.index(token) + 1]] = 0.0
        return SimpleNamespace(logits=logits_BLV)


@pytest.mark.parametrize(
    ("text", "new", "answer"),
    [
        ([*b"?the ba. xyz"], 20, "the ba"),  # the first period is kept out
        ([*b"? hal", END, *b"xyz"], 20, "hal"),  # the end of text
        ([*b"?kitchen."], 3, "kit"),  # length
        ([*b"?.x"], 20, ""),
    ],
)
def test_an_answer_ends_at_a_period_at_the_end_of_text_or_by_length(text, new, answer):
    assert greedy(Chain(text), Bytes(), ["?"], max_new_tokens=new, batch=1, window=99) == [answer]


def test_rows_that_ended_wait_for_the_others_unchanged():
    model = Chain([*b"?a.!bcdef.#g"])
    assert greedy(model, Bytes(), ["?", "!"], max_new_tokens=9, batch=2, window=99) == ["a", "bcdef"]


def test_samples_follow_the_chances_of_the_model_at_their_temperature():
    chances_V = torch.tensor([0.5, 0.3, 0.2])
    decoder = Decoder(Chain(chances=chances_V), Bytes(), window=99, prefix="x")
    texts = decoder.sample(
        4000, max_new_tokens=1, stop="#", temperature=0.5, batch=1000, generator=torch.Generator().manual_seed(0)
    )
    sharper_V = chances_V**2 / (chances_V**2).sum()
    for token, chance in enumerate(sharper_V.tolist()):
        share = sum(text == chr(token) for text in texts) / 4000
        assert share == pytest.approx(chance, abs=4 * (chance * (1 - chance) / 4000) ** 0.5)


def test_samples_come_from_their_own_generator_and_leave_the_blank_before_them_to_the_first_token():
    tiny, before = made(llama), torch.get_rng_state()
    one, same, bare = (
        Decoder(tiny, Bytes(), window=512, prefix=prefix).sample(
            3, max_new_tokens=5, stop="#", temperature=1.0, batch=2, generator=torch.Generator().manual_seed(1)
        )
        for prefix in (PREFIX, PREFIX, PREFIX.rstrip())
    )
    assert one == same == bare
    assert len(set(one)) == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sample_ends_where_it_is_told_to():
    decoder = Decoder(Chain([*b"?abcdef"]), Bytes(), window=99, prefix="?")
    told = {"temperature": 1.0, "batch": 1, "generator": torch.Generator().manual_seed(0)}
    assert decoder.sample(2, max_new_tokens=5, stop="cd", **told) == ["abcd", "abcd"]
    assert decoder.sample(1, max_new_tokens=3, stop="cd", **told) == ["abc"]


def test_the_chances_of_answers_are_those_of_the_tokens_in_which_they_differ():
    tiny = made(llama)
    answers = ["attic", "cellar", "garage"]  # as bytes they share the blank before them
    found_BN = Decoder(tiny, Bytes(), window=512, prefix=PREFIX).chances(PROMPTS[:2], answers, batch=2)
    for prompt, found_N in zip(PROMPTS, found_BN, strict=False):
        after_V = plain_logits(tiny, PREFIX + prompt + " ")
        expected_N = after_V[[ord(letter) for letter in "acg"]].softmax(dim=-1)
        assert torch.allclose(found_N.float(), expected_N, atol=1e-5)


def test_answers_that_begin_alike_are_one_and_an_answer_may_begin_another():
    decoder = Decoder(made(llama), Bytes(), window=512, prefix=PREFIX)
    assert decoder.chances(["Where?"], ["hall", "house", "attic"], batch=1).shape == (1, 2)
    assert decoder.chances(["Where?"], ["hall", "hallway"], batch=1).shape == (1, 2)  # "hall." against "hallw"


# What is refused


def test_a_prompt_longer_than_the_window_is_refused_with_the_numbers():
    tiny = made(llama)
    text = "x" * 20
    assert greedy(tiny, Bytes(), [text], max_new_tokens=3, batch=1, window=33, prefix="a" * 10)
    with pytest.raises(SpecError, match=r"at most 32 tokens fit .* got 30 of the longest prompt \+ 3 new ones, 1 too"):
        greedy(tiny, Bytes(), ["x", text], max_new_tokens=3, batch=1, window=32, prefix="a" * 10)


def test_logits_that_are_not_finite_are_told():
    tiny = made(llama)
    with torch.no_grad():
        tiny.lm_head.weight.fill_(float("nan"))
    with pytest.raises(Diverged, match="logits are not finite"):
        greedy(tiny, Bytes(), ["x"], max_new_tokens=1, batch=1, window=99)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("prompt", ["x", "too long" * 9])
def test_the_model_is_left_as_it_was(training, prompt):
    tiny = made(llama).train(training)
    before = tiny.config._attn_implementation
    try:
        greedy(tiny, Bytes(), [prompt], max_new_tokens=1, batch=1, window=20)
    except SpecError:
        assert prompt != "x"
    assert (tiny.config._attn_implementation, tiny.training) == (before, training)


def test_dropout_does_not_reach_an_answer():
    dropping = transformers.GPT2Config(
        vocab_size=258, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=END
    )
    with torch.random.fork_rng():
        tiny = transformers.GPT2LMHeadModel(dropping).train()
        found_BV = [Decoder(tiny, Bytes(), window=99, prefix="ab").logits(["c"], batch=1) for _ in range(2)]
    assert torch.equal(*found_BV)


def test_an_attention_that_cannot_be_given_is_refused_and_the_model_left_alone():
    bloom = transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=258, hidden_size=8, n_layer=1, n_head=2))
    with pytest.raises(SpecError, match="got that of bloom"):
        greedy(bloom, Bytes(), ["x"], max_new_tokens=1, batch=1, window=99)


def test_an_attention_with_sinks_is_refused():
    x = torch.zeros(1, 1, 1, 2)
    with pytest.raises(SpecError, match="s_aux"):
        attention.attend(torch.nn.Module(), x, x, x, None, s_aux=torch.zeros(1))


def test_layers_of_another_kind_are_refused():
    tiny = made(gemma3)
    tiny.config.layer_types = ["chunked_attention"] * 3
    with pytest.raises(SpecError, match="full or sliding, but got that of gemma3_text"):
        greedy(tiny, Bytes(), ["x"], max_new_tokens=1, batch=1, window=99)
    assert tiny.config._attn_implementation != attention.NAME


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft asks transformers for it
def test_a_model_with_an_adapter_is_read_with_it():
    import peft

    tiny = made(llama)
    with torch.random.fork_rng():
        adapted = peft.get_peft_model(tiny, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    adapted.eval()
    found_BV = Decoder(adapted, Bytes(), window=512, prefix=PREFIX).logits(PROMPTS, batch=5)
    expected_BV = torch.stack([plain_logits(adapted, PREFIX + prompt) for prompt in PROMPTS])
    assert (found_BV - expected_BV).abs().max() < 1e-4
    with adapted.disable_adapter():
        assert (plain_logits(adapted, PREFIX + PROMPTS[0]) - expected_BV[0]).abs().max() > 1e-2
