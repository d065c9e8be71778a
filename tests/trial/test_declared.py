# ruff: noqa: E501 - each line of the table is one that a person reads
"""What a module declares wrongly is one line before anything starts: a table of bad modules, each with its line."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cs330ray.errors import Cs330rayError, SpecError
from cs330ray.service.machines.setup import prepare
from cs330ray.spec.columns import TAKEN
from cs330ray.spec.reading import parse
from cs330ray.trial import declared, named
from cs330ray.trial.check import check
from cs330ray.trial.contract import Metric
from tests import toy

SOUND = """\
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from cs330ray.trial import Metric, Progress, Scores
METRICS = {"val_loss": Metric("min", low=0.0), "test_loss": Metric("min")}
class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    x: float = Field(0.5, ge=-10, le=10)
def prepare(config):
    return "none"
def train(config, seed, steps, resume=None):
    yield Progress(1, {"val_loss": config.x}, lambda directory: None)
def test(config, seed, checkpoint):
    return Scores({"test_loss": 0.0})
"""
METRICS = 'METRICS = {"val_loss": Metric("min", low=0.0), "test_loss": Metric("min")}'
FIELD = "    x: float = Field(0.5, ge=-10, le=10)\n"
PREPARE = '    return "none"\n'
TRAIN, TEST = "def train(config, seed, steps, resume=None)", "def test(config, seed, checkpoint)"
NAMES = ", ".join(sorted(TAKEN))
NOT_IMPORTED = "bad.toml: trainable: 'bad.{name}' cannot be imported: "
BAD = "bad.toml: bad.{name}: "
AT_PREPARE = "bad.{name}: `prepare` must find the data, but raised "
DIGEST = "bad.{name}: `prepare` must return the digest of the data as a text, got "
CHANCE = "bad.{name}: `chance` must "
ABOUT_GOAL = BAD + "METRICS['val_loss'].goal: 'max' or 'min' is expected, got "
ABOUT_LOW = BAD + "METRICS['val_loss'].low: "
ABOUT_TRAIN = BAD + "train: `train(config, seed, steps, resume=None)` is expected, got "

# name: (what is replaced, by what, the line that a person reads)
TABLE = {
    # the import
    "syntax": (TRAIN + ":", TRAIN, NOT_IMPORTED + "SyntaxError: expected ':' (bad/syntax.py:9); correct it there"),
    "a_name": (METRICS, METRICS + "\nthing", NOT_IMPORTED + "NameError: name 'thing' is not defined (bad/a_name.py:4); "
               "correct it there"),
    "wanting": ("import BaseModel", "import NoModel", NOT_IMPORTED + "ImportError: cannot import name 'NoModel' from "
                "'pydantic' ({pydantic}) (bad/wanting.py:1); correct it there"),
    "another": (METRICS, METRICS + "\nimport no_such_thing", NOT_IMPORTED + "ModuleNotFoundError: No module named "
                "'no_such_thing' (bad/another.py:4); install it, or add the directory that holds it to PYTHONPATH"),
    "no_file": (METRICS, METRICS + "\nopen('/no/such.csv')", NOT_IMPORTED + "FileNotFoundError: [Errno 2] No such file "
                "or directory: '/no/such.csv' (bad/no_file.py:4); correct it there"),
    "exits": (METRICS, METRICS + "\nraise SystemExit('usage: t.py')", NOT_IMPORTED + "SystemExit: usage: t.py "
              '(bad/exits.py:4); put what runs as a program under `if __name__ == "__main__":`'),
    "lines": (METRICS, METRICS + "\nraise RuntimeError('\\n one\\ntwo')", NOT_IMPORTED + "RuntimeError: one "
              "(bad/lines.py:4); correct it there"),
    "silent": (METRICS, METRICS + "\nassert not METRICS", NOT_IMPORTED + "AssertionError (bad/silent.py:4); "
               "correct it there"),
    # the five names
    "missing": (TEST, "def score(config)", "bad.toml: trainable: 'bad.missing' must define test; cs330ray.trial.Trainable "
                "says how"),
    # Config
    "dataclass": ("class Config(BaseModel):", "class Config:", BAD + "Config: a class derived from pydantic's BaseModel "
                  "is expected, got the class Config"),
    "instance": ("def prepare", "Config = Config()\ndef prepare", BAD + "Config: a class derived from pydantic's "
                 "BaseModel is expected, got Config(x=0.5)"),
    "factory": (FIELD, FIELD + "    y: int = Field(default_factory=lambda: [][1])\n", BAD + "Config: one of defaults "
                "alone cannot be built: IndexError: list index out of range (bad/factory.py:7); correct it there"),
    "required": (FIELD, FIELD + "    root: str\n", "bad.toml: root: a value is expected, since Config has no default for "
                 "it; write one under [fixed]"),
    "validator": (FIELD, FIELD + "    @model_validator(mode='after')\n    def _v(self):\n        raise "
                  "ValueError('x must fit\\nor not')\n", "bad.toml: bad.validator: x must fit, but got {{'x': -1.0}}"),
    "raising": (FIELD, FIELD + "    @field_validator('x')\n    @classmethod\n    def _v(cls, x):\n        return "
                "{{}}[x]\n", "bad.toml: search.x: no Config can be built with -1.0: KeyError: -1.0 (bad/raising.py:10)"),
    "seed_field": (FIELD, FIELD + "    seed: int = 0\n    state: str = 'a'\n", BAD + "Config has seed, state, but the "
                   "record has columns of these names (" + NAMES +
                   "); choose other names"),
    # METRICS
    "step_metric": (METRICS, METRICS[:-1] + ', "step": Metric("min")}', BAD + "METRICS has step, but the record has "
                    "columns of these names (" + NAMES +
                    "); choose other names"),
    "texts": (METRICS, 'METRICS = {"val_loss": "minimize"}', BAD + "METRICS['val_loss']: a Metric is expected, got "
              "'minimize'; write Metric(\"min\")"),
    "numbers": (METRICS, 'METRICS = {"val_loss": 1}', BAD + "METRICS['val_loss']: a Metric is expected, got 1; write "
                'Metric("max") or Metric("min")'),
    "a_list": (METRICS, 'METRICS = ["val_loss"]', BAD + 'METRICS: a dictionary such as {{"val_loss": Metric("min")}} is '
               "expected, got ['val_loss']"),
    "none_at_all": (METRICS, "METRICS = {}", BAD + 'METRICS: a dictionary such as {{"val_loss": Metric("min")}} is '
                    "expected, got {{}}"),
    "no_name": (METRICS, 'METRICS = {1: Metric("min")}', BAD + "METRICS: each name must be a text, got 1"),
    "maximize": (METRICS, 'METRICS = {"val_loss": Metric("maximize")}', ABOUT_GOAL + "'maximize'; write 'max'"),
    "minimise": (METRICS, 'METRICS = {"val_loss": Metric("minimise")}', ABOUT_GOAL + "'minimise'; write 'min'"),
    "up": (METRICS, 'METRICS = {"val_loss": Metric(["up"])}', ABOUT_GOAL + "['up']"),
    "swapped": (METRICS, 'METRICS = {"val_loss": Metric("min", 1.0, 0.0)}', ABOUT_LOW + "`low < high` must hold, got "
                "low=1.0, high=0.0"),
    "text_bound": (METRICS, 'METRICS = {"val_loss": Metric("min", "0")}', ABOUT_LOW + "a number is expected, got '0'"),
    "nan_bound": (METRICS, 'METRICS = {"val_loss": Metric("min", float("nan"))}', ABOUT_LOW + "a number is expected, got "
                  "nan"),
    "unit": (METRICS, 'METRICS = {"val_loss": Metric("min", unit=1)}', BAD + "METRICS['val_loss'].unit: a text is "
             "expected, got 1"),
    # functions
    "no_function": (METRICS, METRICS + "\nchance = 0.5", BAD + "chance: a function `chance(config)` "
                    "is expected, got 0.5"),
    "report": (TRAIN, "def train(config, report)", ABOUT_TRAIN + "`train(config, report)`"),
    "swapped_names": (TRAIN, "def train(config, steps, seed, resume=None)", ABOUT_TRAIN + "`train(config, steps, seed, "
                      "resume=None)`"),
    "no_resume": (TRAIN, "def train(config: Config, seed: int, steps: int)", ABOUT_TRAIN + "`train(config, seed, "
                  "steps)`"),
    "by_name": (TRAIN, "def train(*, config, seed, steps, resume)", ABOUT_TRAIN + "`train(*, config, seed, steps, "
                "resume)`"),
    "later": (TRAIN, "async " + TRAIN, BAD + "train: a plain function is expected, got an async one; write `def train`"),
    "test_short": (TEST, "def test(config, checkpoint)", BAD + "test: `test(config, seed, checkpoint)` is expected, got "
                   "`test(config, checkpoint)`"),
    "prepare_none": ("def prepare(config)", "def prepare()", BAD + "prepare: `prepare(config)` is expected, got "
                     "`prepare()`"),
    "ready_flag": (METRICS, METRICS + "\nready = True", BAD + "ready: a function `ready(config, exported)` is expected, "
                   "got True"),
    "export_short": (METRICS, METRICS + "\ndef export(config): ...", BAD + "export: `export(config, seed, checkpoint)` "
                     "is expected, got `export(config)`"),
    "splits": (METRICS, METRICS + "\nSPLITS = 2", BAD + "SPLITS: a word for what workers share out is expected, such as "
               "'tasks', got 2"),
    "fusible_alone": (METRICS, METRICS + "\nFUSIBLE = frozenset({'lr'})", BAD + "train_many: expected beside FUSIBLE, got "
                      "none; write both, or remove FUSIBLE"),
    "many_alone": (METRICS, METRICS + "\ndef train_many(members, left=()): ...", BAD + "FUSIBLE: expected beside "
                   "train_many, got none; write both, or remove train_many"),
    "fusible_what": (METRICS, METRICS + "\nFUSIBLE = {'rate'}\ndef train_many(members, left=()): ...", BAD + "FUSIBLE: a "
                     "frozenset of names of Config's fields is expected, got {'rate'}"),
    "many_short": (METRICS, METRICS + "\nFUSIBLE = frozenset()\ndef train_many(members): ...", BAD + "train_many: "
                   "`train_many(members, left)` is expected, got `train_many(members)`"),
    # prepare
    "path": (PREPARE, "    from pathlib import PurePosixPath\n    return PurePosixPath('data')\n", DIGEST +
             "PurePosixPath('data')"),
    "nothing": (PREPARE, "    pass\n", DIGEST + "None"),
    "no_data": (PREPARE, "    open('/no/train.csv')\n", AT_PREPARE + "FileNotFoundError: [Errno 2] No such file or "
                "directory: '/no/train.csv' (bad/no_data.py:8)"),
    "gives_up": (PREPARE, "    raise SystemExit('no data')\n", AT_PREPARE + "SystemExit: no data (bad/gives_up.py:8)"),
    "deeper": (PREPARE, "    import json\n    json.loads('{{')\n", AT_PREPARE + "JSONDecodeError: Expecting property name "
               "enclosed in double quotes: line 1 column 2 (char 1) (bad/deeper.py:9)"),
    # chance
    "chance_raises": (METRICS, METRICS + "\ndef chance(config):\n    raise KeyError('classes')", CHANCE + "say what "
                      "guessing reaches, but raised KeyError: 'classes' (bad/chance_raises.py:5)"),
    "chance_number": (METRICS, METRICS + "\ndef chance(config):\n    return 0.5", CHANCE + "return a value by metric, "
                      "such as {{'val_accuracy': 0.2}}, got 0.5"),
    "chance_unknown": (METRICS, METRICS + "\ndef chance(config):\n    return {{'val_acc': 0.5}}", CHANCE + "speak of "
                       "val_loss, test_loss, got 'val_acc'"),
    "chance_text": (METRICS, METRICS + "\ndef chance(config):\n    return {{'val_loss': '1/2'}}", CHANCE + "return a "
                    "finite number for val_loss, got '1/2'"),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory on the path, and the current one, whose package `bad` has the modules of the table."""
    folder = tmp_path_factory.mktemp("declarations")
    (folder / "bad").mkdir()
    for name, (old, new, _) in {**TABLE, "sound": ("", "", "")}.items():
        assert SOUND.count(old) == 1 or not old, name
        (folder / "bad" / f"{name}.py").write_text(SOUND.replace(old, new.replace("{{", "{").replace("}}", "}")))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "bad"]:
        del sys.modules[name]


def begin(name: str) -> None:
    """What a run does before anything starts."""
    x = {"low": -1.0, "high": 1.0}
    raw = {"name": "bad", "trainable": f"bad.{name}", "objective": ["val_loss"], "search": {"x": x}}
    study = parse({**raw, "budget": {"trials": 2, "steps": 2}}, "bad.toml")
    check(study, "bad.toml")
    prepare(study)


@pytest.mark.parametrize("name", TABLE)
def test_a_bad_declaration_is_one_line_that_says_what_and_where(name: str) -> None:
    with pytest.raises(Cs330rayError) as caught:
        begin(name)
    import pydantic

    line = TABLE[name][2].replace("{name}", name).replace("{pydantic}", str(pydantic.__file__))
    assert str(caught.value) == line.replace("{{", "{").replace("}}", "}")
    assert "\n" not in str(caught.value)


def test_a_sound_module_is_taken() -> None:
    begin("sound")


def test_numbers_of_numpy_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "METRICS", {"val_loss": Metric("min", np.float32(0), np.int64(9))})
    monkeypatch.setattr(toy, "chance", lambda config: {"val_loss": np.float32(0.5)}, raising=False)
    trainable = named.load("tests.toy")
    assert named.chance_of(trainable, "tests.toy", trainable.Config()) == {"val_loss": 0.5}


def test_what_a_study_gives_needs_no_default() -> None:
    raw = {"name": "bad", "trainable": "bad.required", "objective": ["val_loss"], "fixed": {"root": "here"}}
    check(parse({**raw, "budget": {"trials": 2, "steps": 2}}, "bad.toml"), "bad.toml")


def test_names_that_are_taken_refuse_a_study_but_not_what_was_recorded_under_them() -> None:
    """A model of before is still loaded, and a trial of before is still reproduced: both load the trainable alone."""
    assert named.load("bad.seed_field").Config().seed == 0


@pytest.mark.parametrize("name", named.names())
def test_no_system_of_the_course_has_a_name_of_the_record(name: str) -> None:
    assert declared.taken(named.load(name)) is None


def test_where_an_error_arose_is_the_last_line_of_other_peoples_code() -> None:
    with pytest.raises(ValueError, match="lr") as caught:
        toy.Config(lr="much")  # pydantic's own frames are deeper
    assert re.fullmatch(r".*test_declared\.py:\d+", declared.place_of(caught.value))


def test_a_module_that_is_not_there_is_told_by_its_path() -> None:
    with pytest.raises(SpecError, match=r"set PYTHONPATH to the directory that holds bad/elsewhere\.py"):
        named.load("bad.elsewhere")
