"""`tiny` and `tiny-encoder`: models of two random layers over bytes, built in memory, for tests."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from cs330ray.course.pretrained.library import import_transformers
from cs330ray.errors import SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tiny:
    """How `tiny` and `tiny-encoder` are drawn."""

    seed: int = 330
    hidden: int = 32
    heads: int = 2
    layers: int = 2
    window: int = 2048
    std: float = 0.1  # wide enough that no two tokens are equally likely but for rounding


TINY = Tiny()
IN_MEMORY = ("tiny", "tiny-encoder")


def build(model: str, auto: str, shape: Mapping[str, Any]) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Draw a random model of the given kind; each tensor by its name, so that fewer layers are the first of more."""
    transformers = import_transformers(model)
    tokenizer = _bytes_tokenizer(transformers)
    config = (transformers.LlamaConfig if model == "tiny" else transformers.BertConfig)(
        vocab_size=len(tokenizer),
        hidden_size=TINY.hidden,
        intermediate_size=2 * TINY.hidden,
        num_hidden_layers=TINY.layers,
        num_attention_heads=TINY.heads,
        max_position_embeddings=TINY.window,
        initializer_range=TINY.std,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    set_shape(config, shape, model)
    with torch.random.fork_rng(devices=[]):
        weights = getattr(transformers, auto).from_config(config)
    prefix = f"{weights.base_model_prefix}."  # which a model without a head has not
    draw(((name.removeprefix(prefix), each) for name, each in weights.named_parameters()), TINY.seed, config)
    return weights, tokenizer


def _bytes_tokenizer(transformers: Any) -> "PreTrainedTokenizerBase":
    """A tokenizer whose tokens are the 256 bytes, the end of text and padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"eos_token": "<|end|>", "pad_token": "<|pad|>"}
    fast: PreTrainedTokenizerBase = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special
    )
    return fast


def draw(parameters: Iterable[tuple[str, torch.nn.Parameter]], seed: int, config: "PreTrainedConfig") -> None:
    """Draw each matrix from a normal distribution by its name and `seed`; biases are 0, norms stay as made."""
    std = getattr(config, "initializer_range", 0.02)
    with torch.no_grad():
        for name, parameter in parameters:
            if parameter.dim() > 1:
                hashed = hashlib.sha256(f"{name}/{seed}".encode()).digest()
                random = torch.Generator().manual_seed(int.from_bytes(hashed[:8], "big") >> 1)
                parameter.normal_(0, std, generator=random)
            elif name.endswith("bias"):
                parameter.zero_()


def set_shape(config: "PreTrainedConfig", shape: Mapping[str, Any], model: str) -> None:
    """Give a config its number of classes and of blocks."""
    if (layers := shape.get("num_hidden_layers")) is not None:
        if not 1 <= layers <= config.num_hidden_layers:
            raise SpecError(
                f"{model}: `1 <= layers <= {config.num_hidden_layers}` must hold, the number it has, but got {layers}"
            )
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = config.layer_types[:layers]
    if "num_labels" in shape:
        config.num_labels = shape["num_labels"]
