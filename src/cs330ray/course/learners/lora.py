"""Fine-tuning of a language model: all weights, some blocks, or LoRA (Hu et al. 2021); the loss of the answers alone.

LoRA leaves a matrix W as it is and adds (alpha / rank) B A to it, section 4.1; A is drawn, B begins as zero.
"""

# ruff: noqa: N802, N815 - fields carry their shapes

import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cs330ray.errors import SpecError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

Method = Literal["all", "first", "middle", "last", "lora"]
OF_BLOCKS = ("attention", "mlp", "both")  # which matrices of each block
ALL_LINEAR = "all-linear"  # every matrix of the model but the embeddings' and the head's, as QLoRA has them

IGNORED = -100  # the label of what is no answer
ATTENTION = ("attn", "attention")  # parts of the names of modules, in every architecture of transformers


@dataclass(frozen=True)
class Tuning:
    """Which parameters train. The head of a classifier, which is new, always does."""

    method: Method = "lora"
    blocks: int = 2  # first, middle, last: how many
    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0  # of what goes into A
    targets: str = "both"  # one of OF_BLOCKS, ALL_LINEAR, or names of matrices with commas: "q_proj, v_proj"


@dataclass(frozen=True)
class Encoded:
    """An example as tokens: a prompt and its answer, of which the last `answer` ids are; or a text and its class."""

    ids: tuple[int, ...]
    answer: int = 0
    label: int | None = None  # the class

    @property
    def answers(self) -> int:
        """How many labels it has that count: tokens of its answer, or its class."""
        return self.answer if self.label is None else 1


@dataclass(frozen=True)
class Batch:
    """Examples side by side; labels are those of the last K tokens, or K = 1 class, IGNORED where none is asked."""

    ids_BL: Tensor
    mask_BL: Tensor  # 1 at a token, 0 at padding
    labels_BK: Tensor
    classes: bool

    @property
    def answers(self) -> int:
        """How many labels count: tokens of answers, or examples where classes are told."""
        return int((self.labels_BK != IGNORED).sum())


@dataclass(frozen=True)
class Scored:
    """Of each example: the summed loss of its labels in nats, how many of them were right, and how many there are.

    `likeliest_B` is the value that has the highest score for its last label: of classes the one told.
    """

    loss_B: Tensor
    right_B: Tensor
    labels_B: Tensor
    likeliest_B: Tensor

    @property
    def accuracy_B(self) -> Tensor:
        """The share of an example's labels that were right, each after the true ones before it."""
        return self.right_B / self.labels_B


# Which parameters


def tune(model: "PreTrainedModel", tuning: Tuning, generator: torch.Generator) -> "PeftModel | None":
    """Let the parameters that `tuning` names require a gradient, and no others; with LoRA, the adapter now in `model`.

    Raises SpecError where there are fewer blocks than are asked for, or no matrix of that kind.
    """
    model.requires_grad_(False)
    if (last := model.get_output_embeddings()) is not None:  # type: ignore[no-untyped-call]
        last.register_forward_pre_hook(_in_one_product)
    if tuning.method == "lora":
        return _adapt(model, tuning, generator)
    if tuning.method == "all":
        model.requires_grad_(True)
        return None
    name, blocks = _blocks(model)
    if tuning.blocks > len(blocks):
        raise SpecError(f"blocks: at most {len(blocks)}, those of {name}, can train, but got {tuning.blocks}; lower it")
    rest = len(blocks) - tuning.blocks
    start = {"first": 0, "middle": rest // 2, "last": rest}[tuning.method]
    blocks[start : start + tuning.blocks].requires_grad_(True)
    for part in _head(model):
        model.get_submodule(part).requires_grad_(True)
    return None


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name; a shared one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def require_peft() -> None:
    """Raise SpecError where peft is not installed."""
    try:
        import peft  # noqa: F401 - here: it takes seconds
    except ImportError:
        raise SpecError("method: lora needs the extra: pip install 'cs330ray[lm]'") from None


def adapter_tensors(adapter: "PeftModel") -> dict[str, Tensor]:
    """What peft keeps of an adapter, under the names of its own files."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def set_dropout(model: nn.Module, share: float) -> None:
    """Drop this share wherever the model, not LoRA, has a dropout."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        elif isinstance(getattr(module, "attention_dropout", None), float | int):
            module.attention_dropout = share  # type: ignore[assignment]


def checkpoint_gradients(model: "PreTrainedModel") -> None:
    """Have the blocks compute again, in the backward pass, what they would keep: less memory, the same gradients."""
    require_checkpointing(model)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()  # type: ignore[no-untyped-call]  # of the reentrant kind alone


def require_checkpointing(model: "PreTrainedModel") -> None:
    """Raise SpecError where a model cannot compute its blocks again."""
    if not model.supports_gradient_checkpointing:
        raise SpecError(
            f"gradient_checkpointing: expected a model that can do it, got {type(model).__name__}; set it to false"
        )


def _in_one_product(_: nn.Module, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Have the last tokens' features lie together: as a cut, each row is multiplied by the vocabulary alone."""
    return tuple(feature.contiguous() for feature in features)


def _adapt(model: "PreTrainedModel", tuning: Tuning, generator: torch.Generator) -> "PeftModel":
    require_peft()
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    head = [part.rpartition(".")[2] for part in _head(model)]
    config = LoraConfig(
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
        r=tuning.rank,
        lora_alpha=tuning.alpha,  # type: ignore[arg-type]  # whole numbers by its annotation; it divides, no more
        lora_dropout=tuning.dropout,
        target_modules=adapted(model, tuning.targets),
        modules_to_save=head or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # gpt2 keeps W transposed
    )
    # peft draws first values from the global stream, on the CPU; and asks transformers by a name that is going away
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapter: PeftModel = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            drawn = torch.empty(parameter.shape)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)  # as peft and Hu et al.'s code
            parameter.data.copy_(drawn)
    return adapter


def adapted(model: "PreTrainedModel", targets: str) -> str:
    """Find the matrices that get an adapter; a pattern of their names. Raises SpecError where there is none."""
    from transformers.pytorch_utils import Conv1D

    if targets not in OF_BLOCKS:
        return _named(model, targets)
    name, blocks = _blocks(model)
    matrices = [place for place, module in blocks[0].named_modules() if isinstance(module, nn.Linear | Conv1D)]
    chosen = [place for place in matrices if targets in ("both", "attention" if _attends(place) else "mlp")]
    if not chosen:
        raise SpecError(f"targets: a block of this model has the matrices {matrices}, none of them {targets!r}")
    return rf"{re.escape(name)}\.\d+\.({'|'.join(map(re.escape, chosen))})"


def _named(model: "PreTrainedModel", targets: str) -> str:
    """The pattern of matrices by their names, or by the ends of these as peft has it; never those of the head."""
    from transformers.pytorch_utils import Conv1D

    last, head = model.get_output_embeddings(), tuple(f"{part}." for part in _head(model))  # type: ignore[no-untyped-call]
    matrices = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not last and not f"{name}.".startswith(head or "\0")
    ]
    if targets == ALL_LINEAR:
        return "|".join(map(re.escape, matrices))
    asked = [each.strip() for each in targets.split(",")]
    for each in asked:
        if not any(f".{name}".endswith(f".{each}") for name in matrices):
            known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in matrices))
            raise SpecError(
                f"targets: expected {', '.join((*OF_BLOCKS, ALL_LINEAR))} or names of this model's matrices ({known}), "
                f"got {each!r}; choose among them"
            )
    return "|".join(re.escape(name) for name in matrices if any(f".{name}".endswith(f".{each}") for each in asked))


def _attends(place: str) -> bool:
    return any(word in place for word in ATTENTION)


def _blocks(model: "PreTrainedModel") -> tuple[str, nn.ModuleList]:
    layers = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return name, module
    raise SpecError(f"model: a list of its {layers} blocks is needed, but {type(model).__name__} has none")


def _head(model: "PreTrainedModel") -> list[str]:
    """Names of what a classifier has behind its blocks; none where the model generates."""
    if model.get_output_embeddings() is not None:  # type: ignore[no-untyped-call]
        return []
    prefix = model.base_model_prefix
    head = [f"{prefix}.pooler"] if getattr(model.base_model, "pooler", None) is not None else []
    return head + [name for name, part in model.named_children() if name != prefix and list(part.parameters())]


# The loss


def batches(
    examples: Sequence[Encoded], size: int, *, pad: int, device: torch.device
) -> Iterator[tuple[list[int], Batch]]:
    """Cut examples into batches of like lengths, longest first; each with the places of its examples."""
    order = sorted(range(len(examples)), key=lambda place: -len(examples[place].ids))
    for first in range(0, len(order), size):
        places = order[first : first + size]
        yield places, collate([examples[place] for place in places], pad=pad, device=device)


def collate(examples: Sequence[Encoded], *, pad: int, device: torch.device) -> Batch:
    """Pad examples to the longest: answers on the left, so that all end together, classes' texts on the right.

    The last token of an answer is a label alone: nothing is asked after it.
    """
    if examples[0].label is not None:
        length = max(len(example.ids) for example in examples)
        rows = [(*example.ids, *[pad] * (length - len(example.ids))) for example in examples]
        mask = [[1] * len(example.ids) + [0] * (length - len(example.ids)) for example in examples]
        labels_BK = torch.tensor([[example.label] for example in examples])
        return Batch(torch.tensor(rows).to(device), torch.tensor(mask).to(device), labels_BK.to(device), classes=True)
    length = max(len(example.ids) for example in examples)
    rows = [(*[pad] * (length - len(example.ids)), *example.ids) for example in examples]
    ids_BL = torch.tensor(rows)
    place_L = torch.arange(length)
    starts_B1 = torch.tensor([[length - len(example.ids)] for example in examples])
    labels_BL = answers_alone(ids_BL, torch.tensor([example.answer for example in examples]))
    mask_BL = (place_L >= starts_B1).long()
    asked = max(example.answer for example in examples)
    return Batch(ids_BL[:, :-1].to(device), mask_BL[:, :-1].to(device), labels_BL[:, -asked:].to(device), classes=False)


def answers_alone(ids_BL: Tensor, answer_B: Tensor) -> Tensor:
    """Make labels of tokens: those of the answers, which end the rows, and IGNORED in prompts and padding."""
    length = ids_BL.shape[1]
    return ids_BL.masked_fill(torch.arange(length) < length - answer_B[:, None], IGNORED)


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """Score each value of each label: (B, K, V). Vocabulary is multiplied out at the last K tokens alone."""
    if batch.classes:
        scores_BV: Tensor = model(input_ids=batch.ids_BL, attention_mask=batch.mask_BL).logits
        return scores_BV[:, None]
    found: Any = model(
        input_ids=batch.ids_BL,
        attention_mask=batch.mask_BL,
        position_ids=(batch.mask_BL.cumsum(dim=1) - 1).clamp(min=0),
        logits_to_keep=batch.labels_BK.shape[1],
        use_cache=False,
    )
    scores_BKV: Tensor = found.logits
    return scores_BKV


def scored(model: nn.Module, batch: Batch) -> Scored:
    """Score a batch, each label after the true ones before it."""
    logits_BKV = logits(model, batch)
    labels_BK = batch.labels_BK
    loss_B = F.cross_entropy(logits_BKV.flatten(0, 1), labels_BK.flatten(), ignore_index=IGNORED, reduction="none")
    loss_BK = loss_B.view_as(labels_BK)
    likeliest_BK = logits_BKV.detach().argmax(dim=-1)
    right_B = (likeliest_BK == labels_BK).sum(dim=1)
    return Scored(loss_BK.sum(dim=1), right_B, (labels_BK != IGNORED).sum(dim=1), likeliest_BK[:, -1])


def backward(
    model: nn.Module,
    parts: Sequence[Batch],
    *,
    answers: int,
    computing: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> float:
    """Add to the gradients that of the summed loss over `answers`, the labels of the WHOLE batch; that loss.

    `parts` may be all of a batch or a worker's share of it: whoever adds up what the shares give has the whole.
    `computing` is around the forward pass alone, as torch wants it of mixed precision.
    """
    total = 0.0
    for part in parts:
        with computing():
            loss = scored(model, part).loss_B.sum() / answers
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


@torch.no_grad()
def evaluate(model: nn.Module, examples: Sequence[Encoded], size: int, *, pad: int, device: torch.device) -> Scored:
    """Score examples without dropout, in their order."""
    model.eval()
    rows: dict[int, tuple[Tensor, ...]] = {}
    for places, batch in batches(examples, size, pad=pad, device=device):
        found = scored(model, batch)
        columns = zip(*(column.cpu() for column in vars(found).values()), strict=True)
        rows |= dict(zip(places, columns, strict=True))
    return Scored(*(torch.stack(column) for column in zip(*(rows[place] for place in sorted(rows)), strict=True)))
