"""How fast a GPU trains: each system beside the course's own loop, and trials that train together."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks import incontext, lora_step, maml_step, mann_step, protonet_step
from benchmarks.gpu_parts.promises import Rows, language_model
from benchmarks.headline_arms import plain
from benchmarks.multitask_epoch import BATCH, plain_epoch, plain_net
from cs330ray.course.data import movielens, text
from cs330ray.course.data.images import image_classes
from cs330ray.course.learners.decoding import Decoder
from cs330ray.course.learners.fewshot import conv4
from cs330ray.course.learners.fewshot.tasks import Batch
from cs330ray.course.learners.incontext import Asking
from cs330ray.course.learners.recommender import multitask
from cs330ray.course.learners.recommender.ratings import Ratings
from cs330ray.course.pretrained import models
from cs330ray.training.device import device
from cs330ray.trial import contract, named

NOT_BUILT = "not built"
MEMBERS = (1, 4, 16)
FEW = 20  # characters whose files the course's loops read
Work = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """How much is timed."""

    seconds: float  # of a loop of the course's
    steps: int  # of a system, timed behind as many that warm up
    epochs: int  # of the recommender
    few_shot: Mapping[str, Mapping[str, Any]]  # what is changed of a system's configuration


SIZES = {
    "cuda": Size(4.0, 100, 2, {"maml": {"filters": 32, "queries": 15}, "protonet": {"ways": 5}}),
    "cpu": Size(
        0.1,
        1,
        1,
        {
            "maml": {"tasks": 1, "filters": 4, "queries": 2},
            "protonet": {"ways": 5, "tasks": 1, "filters": 4},
            "mann": {"tasks": 8, "hidden": 8},
        },
    ),
}


# Beside the course's loops -------------------------------------------------------------------------------------------


def steps(where: str, folder: Path) -> Rows:
    """Steps a second of each system as it trains, and of the course's loop with its own data on the same device."""
    torch.manual_seed(0)
    random.seed(0)
    size = SIZES[where]
    loops = {"maml": maml_loop, "protonet": protonet_loop, "mann": mann_loop}
    for name, loop in loops.items():
        yield name, partial(beside, name, size, partial(loop, folder / name))
    yield "multitask", partial(recommender, size)
    yield "baseline", partial(alone, size)
    model = language_model(where)
    yield f"finetune, {model}", partial(adapters, size, model)
    yield f"icl, {model}", partial(questions, size, model)


def beside(name: str, size: Size, loop: Callable[[Any], Work]) -> str:
    """Time a few-shot system and the course's loop of the same tasks."""
    config = few_shot(name, size)
    return told(trained(name, config, size.steps), repeated(loop(config), size.seconds))


def few_shot(name: str, size: Size) -> Any:
    """The configuration of a few-shot system, which evaluates one task at a time."""
    given = {"dataset": "glyphs", "eval_every_steps": size.steps, "val_tasks": 1, **size.few_shot.get(name, {})}
    config = named.load(name).Config(**given, **({"body": "pooled"} if name == "maml" else {}))
    named.load(name).prepare(config)
    return config


def told(ours: float, theirs: float | None, what: str = "steps") -> str:
    """Say rates a second beside one another."""
    other = "the course has no loop" if theirs is None else f"the course's {theirs:,.1f}: x{ours / theirs:.1f}"
    return f"{ours:,.1f} {what} a second, {other}"


def trained(name: str, config: Any, steps: int, *, a_step: int = 1) -> float:
    """Steps a second of a system between two of its rows, the second evaluation included."""
    ended = [now_s() for _ in named.load(name).train(config, 0, 2 * steps)]
    return steps * a_step / (ended[1] - ended[0])


def repeated(work: Work, seconds: float) -> float:
    """Calls a second of a step, after one that warms up."""
    work()
    began, count = now_s(), 0
    while not count or time.perf_counter() - began < seconds:
        work()
        count += 1
    return count / (now_s() - began)


def now_s() -> float:
    """The time at which all that was asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def maml_loop(folder: Path, config: Any) -> Work:
    """The course's loop over the tasks of a given batch."""
    where, shape = device(), (config.tasks, config.ways, config.shots + config.queries, 1, 28, 28)
    params = drawn(config.filters, config.ways)
    images = (torch.rand(shape, device=where) < 0.1).float()
    batch = Batch(images[:, :, : config.shots], images[:, :, config.shots :])
    optimizer = torch.optim.Adam(params.values(), lr=config.outer_lr)

    def step() -> None:
        optimizer.zero_grad()
        maml_step.plain_step("pooled", config.inner_steps, params, batch)
        optimizer.step()

    return step


def drawn(filters: int, ways: int | None) -> dict[str, Tensor]:
    """Parameters of the net of four blocks, on the device; with a head for so many classes."""
    given = conv4.init("pooled", filters=filters, ways=ways, generator=torch.Generator().manual_seed(0))
    return {name: param.to(device()).requires_grad_() for name, param in given.items()}


def protonet_loop(folder: Path, config: Any) -> Work:
    """The course's loop over tasks whose images are read from files, by Pillow."""
    folder.mkdir(parents=True)
    where, seeds = device(), iter(range(10**9))
    images = replace(protonet_step.Images.write(folder, "pil", smallest=True), tasks=config.tasks)
    params = drawn(config.filters, None)
    optimizer = torch.optim.Adam(params.values(), lr=config.lr)

    def step() -> None:
        read = protonet_step.plain_data(images, config.shots, next(seeds))
        optimizer.zero_grad()
        protonet_step.plain_backward(params, [(support.to(where), query.to(where)) for support, query in read])
        optimizer.step()

    return step


def mann_loop(folder: Path, config: Any) -> Work:
    """The course's loop over tasks of files that are read once and then kept."""
    folder.mkdir(parents=True)
    classes_MRHW = image_classes("glyphs", "course", 0, "train")[:FEW]
    tasks = mann_step.PlainTasks(mann_step.write_files(classes_MRHW, folder), config.ways, config.shots, keep=True)
    batches = iter(DataLoader(tasks, batch_size=config.tasks))
    net = mann_step.PlainMann(config.ways, config.hidden).to(device())
    optimizer = torch.optim.Adam(net.parameters(), lr=config.lr)

    def step() -> None:
        images, labels = next(batches)
        mann_step.plain_step(net, optimizer, images.to(device()), labels.to(device()))

    return step


def recommender(size: Size) -> str:
    """Time the recommender on planted ratings, ours with an evaluation an epoch, and the course's loop."""
    where, system = device(), named.load("multitask")
    read = plain.read("planted")["train"]
    train = Ratings(*(column.to(where) for column in vars(read).values()))
    (users, items), stream = movielens.sizes("planted"), torch.Generator().manual_seed(0)
    params = multitask.init(
        users=users, items=items, dim=32, layers=[64], sharing="shared", std=1 / 32, mean_stars=None, generator=stream
    )
    net = plain_net(params, "shared").to(where)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def epoch() -> None:
        plain_epoch(net, optimizer, plain.batches(train, items, stream))

    a_epoch = -(-len(train) // BATCH)
    config = system.Config(dataset="planted", eval_every_steps=size.epochs)
    return told(trained("multitask", config, size.epochs, a_step=a_epoch), a_epoch * repeated(epoch, size.seconds))


def alone(size: Size) -> str:
    """Time the baseline, for which the course has no loop."""
    return told(trained("baseline", few_shot("baseline", size), size.steps), None)


def adapters(size: Size, model: str) -> str:
    """Time LoRA, and LoRA as it is often written."""
    system, side = named.load("finetune"), lora_step.Side("plain", model)
    changes = {"early_stop": False, "eval_every_steps": size.steps, "eval_examples": 1}
    config = system.Config(**(side.config.model_dump() | changes))
    return told(trained("finetune", config, size.steps), repeated(side.step, size.seconds))


def questions(size: Size, name: str) -> str:
    """Time questions behind shared examples, and each prompt read alone."""
    asking, few = Asking("qa"), max(1, min(size.steps, 50))
    shots = text.draw(text.examples("rooms", "train", 0), 2, 0, classes=False)
    asked = [asking.prompt(example.text) for example in text.examples("rooms", "val", 0)[:few]]
    prefix = asking.prefix([(shot.text, shot.answer) for shot in shots])
    model, tokenizer = models.causal(name, device=device())
    decoder = Decoder(model, tokenizer, window=models.window(model), prefix=prefix)
    tokens, batch = incontext.NEW_TOKENS, incontext.BATCH
    ours = few * repeated(lambda: decoder.greedy(asked, max_new_tokens=tokens, batch=batch), size.seconds)
    theirs = repeated(lambda: incontext.plain_answer(model, tokenizer, prefix + asked[0]), size.seconds)
    return told(ours, theirs, "questions")


# Together ------------------------------------------------------------------------------------------------------------


def together(where: str, folder: Path) -> Rows:
    """What 1, 4 and 16 trials that train together take of a GPU."""
    size = SIZES[where]
    glyphs = {"dataset": "glyphs", "val_tasks": 1, "eval_every_steps": size.steps}
    planted = {"dataset": "planted", "eval_every_steps": size.epochs}
    quick = {"body": "pooled", "filters": 16, "tasks": 4, "queries": 5}
    cases = {
        "mann, hidden 128": ("mann", {**glyphs, **({} if where == "cuda" else {"tasks": 4})}, size.steps, 1),
        "maml of the quickstart": ("maml", glyphs | quick, size.steps, 1),
        "multitask, batch 256": ("multitask", planted, size.epochs, 211),
    }
    for name, (system, given, count, a_step) in cases.items():
        yield name, partial(rates, system, given, count, a_step)


def rates(system: str, given: Mapping[str, Any], steps: int, a_step: int) -> str:
    """Steps a second of all members, by their number; `a_step` optimiser's steps make one of the trial's."""
    trainable = named.load(system)
    if not hasattr(trainable, "train_many"):
        return NOT_BUILT
    config = trainable.Config(**given)
    trainable.prepare(config)
    found = {members: members * a_step * steps / lasted_s(trainable, config, members, steps) for members in MEMBERS}
    said = [f"{members}: {rate:,.0f} (x{rate / found[1]:.1f})" for members, rate in found.items()]
    return f"steps a second of all members, by their number: {', '.join(said)}"


def lasted_s(trainable: Any, config: Any, members: int, steps: int) -> float:
    """Seconds that members that differ in their seeds take from their first row to their second."""
    ended = []
    for moment in trainable.train_many([contract.Member(config, seed, 2 * steps) for seed in range(members)]):
        for ending in moment.values():
            if isinstance(ending, Exception):
                raise ending
        ended.append(now_s())
    assert len(ended) == 2, f"{len(ended)} moments in place of 2"
    return ended[1] - ended[0]
