"""What a training step of MANN costs, data and all, against the code that the course's solutions write.

    python benchmarks/mann_step.py [--smallest]

The plain code: a generator that draws one task at a time from folders of PNG files, each decoded once and then kept
(the course's default) or decoded whenever it is drawn; torch's DataLoader in the same process; one-hot labels beside
the pixels; two batched nn.LSTM, autograd, Adam as it comes. Both take 128 tasks a step, on one thread, of the same
characters (Omniglot where its archives are at hand, else glyphs), and on the same tasks reach the same weights.

They take turns; a figure is a median over the turns of the processor's seconds, so that waiting for it does not count.
The floor is the step's multiplications at the speed of one large product of matrices in the same turns, by the faster
of torch's two libraries. The last line is one JSON object, of the first case: `of_floor` is our time over the floor,
`ratio` the plain code's time over ours with files kept, `ratio_reading` with files read, `ratio_given` with the tasks
given to it for nothing.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, IterableDataset

from cs330ray.course.data import archives
from cs330ray.course.data.episodes import Classes
from cs330ray.course.data.images import image_classes
from cs330ray.course.learners.mann import Batch
from cs330ray.course.systems import mann
from cs330ray.course.systems.together import Trainee

CASES = [(3, 1, 128), (2, 1, 128), (4, 1, 128), (3, 1, 256), (3, 1, 8)]  # ways, shots, hidden
TURNS, WARM = 31, 3  # the first turns warm up
STEPS = 20  # of the comparison, and of a profile
FEW, FEWEST_TASKS = 20, 8  # characters, and tasks a step, at the smallest size
SIDE = 1024  # of the large matrices
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-3}  # of the weights after so many steps, relative
SHOWN = 12  # operations of a profile


class PlainTasks(IterableDataset):
    """One task after the other, as images (K + 1, N, 784) and one-hot labels (K + 1, N, N)."""

    def __init__(self, folders: list[Path], ways: int, shots: int, *, keep: bool) -> None:
        self.folders, self.ways, self.shots, self.keep = folders, ways, shots, keep
        self.kept: dict[str, np.ndarray] = {}

    def image(self, file: str) -> np.ndarray:
        if file in self.kept:
            return self.kept[file]
        with Image.open(file) as opened:
            image = 1 - np.asarray(opened).reshape(-1).astype(np.float32) / 255
        if self.keep:
            self.kept[file] = image
        return image

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            folders = random.sample(self.folders, self.ways)
            rounds = [random.sample([str(file) for file in folder.iterdir()], self.shots + 1) for folder in folders]
            shown = [(files[at], label) for at in range(self.shots) for label, files in enumerate(rounds)]
            asked = [(files[self.shots], label) for label, files in enumerate(rounds)]
            random.shuffle(asked)
            images = np.stack([self.image(file) for file, _ in shown + asked])
            labels = np.eye(self.ways, dtype=np.float32)[[label for _, label in shown + asked]]
            shape = (self.shots + 1, self.ways, -1)
            yield torch.from_numpy(images).view(shape), torch.from_numpy(labels).view(shape)


class PlainMann(nn.Module):
    def __init__(self, ways: int, hidden: int) -> None:
        super().__init__()
        self.layer1 = nn.LSTM(784 + ways, hidden, batch_first=True)
        self.layer2 = nn.LSTM(hidden, ways, batch_first=True)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        seen = labels.clone()
        seen[:, -1] = 0
        x = torch.cat([images, seen], dim=3).flatten(1, 2)
        x, _ = self.layer1(x)
        x, _ = self.layer2(x)
        return x.view(labels.shape)


def plain_step(net: PlainMann, optimizer: torch.optim.Adam, images: Tensor, labels: Tensor) -> None:
    ways = labels.shape[-1]
    logits = net(images, labels)
    loss = F.cross_entropy(logits[:, -1].reshape(-1, ways), labels[:, -1].argmax(dim=-1).flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def plain_net(state: mann._State, ways: int, hidden: int) -> PlainMann:
    """The module with these weights."""
    net = PlainMann(ways, hidden).to(next(iter(state.params.values())).dtype)
    params = {name: param.detach() for name, param in state.params.items()}
    with torch.no_grad():
        for layer, module in ((1, net.layer1), (2, net.layer2)):
            inputs = ["weight_image", "weight_label"] if layer == 1 else ["weight_input"]
            module.weight_ih_l0.copy_(torch.cat([params[f"layer{layer}.{name}"] for name in inputs], dim=1))
            module.weight_hh_l0.copy_(params[f"layer{layer}.weight_hidden"])
            module.bias_ih_l0.copy_(params[f"layer{layer}.bias_input"])
            module.bias_hh_l0.copy_(params[f"layer{layer}.bias_hidden"])
    return net


def plain_form(batch: Batch, ways: int) -> tuple[Tensor, Tensor]:
    """Our tasks in the form of the plain code."""
    images_TLD = batch.images_LTCHW.flatten(2).transpose(0, 1)
    support_L = torch.arange(images_TLD.shape[1] - ways) % ways
    labels_TL = torch.cat([support_L.expand(len(images_TLD), -1), batch.labels_TN], dim=1)
    labels_TLN = F.one_hot(labels_TL, ways).to(images_TLD.dtype)
    return images_TLD.unflatten(1, (-1, ways)), labels_TLN.unflatten(1, (-1, ways))


def check_agreement(config: mann.Config, classes_MRHW: Tensor) -> dict[torch.dtype, float]:
    """Train both on the same tasks; how far apart their weights are, relative, by precision."""
    found = {}
    for dtype, tolerance in TOLERANCE.items():
        state = mann._State.fresh(config, 0, torch.device("cpu"))
        state.params = {name: param.detach().to(dtype).requires_grad_() for name, param in state.params.items()}
        state.optimizer = torch.optim.Adam(state.params.values(), lr=config.lr, fused=True)
        net = plain_net(state, config.ways, config.hidden)
        optimizer = torch.optim.Adam(net.parameters(), lr=config.lr)
        for _ in range(STEPS):
            batch = mann._draw(config, Classes.equal(classes_MRHW), config.tasks, state.generator)
            batch = replace(batch, images_LTCHW=batch.images_LTCHW.to(dtype))
            learn(config, state, batch)
            plain_step(net, optimizer, *plain_form(batch, config.ways))
        plain, ours = (
            torch.cat([param.detach().flatten() for param in one.parameters()])
            for one in (net, plain_net(state, config.ways, config.hidden))
        )
        found[dtype] = ((plain - ours).norm() / plain.norm()).item()
        assert found[dtype] <= tolerance, f"{config.ways}-way, {dtype}: the weights are {found[dtype]:.1e} apart"
    return found


def multiplications(config: mann.Config) -> float:
    """Floating-point operations of a step's matrix products: forward 1, backward 2, but 1 for the images' weights."""
    tasks, ways, hidden = config.tasks, config.ways, config.hidden
    length = (config.shots + 1) * ways
    inputs = length * 784 * 4 * hidden * 2 + length * hidden * 4 * ways * 3
    recurrent = (length - 1) * (hidden * 4 * hidden + ways * 4 * ways) * 3
    return 2.0 * tasks * (inputs + recurrent)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def our_step(config: mann.Config, state: mann._State, classes_MRHW: Tensor) -> None:
    learn(config, state, mann._draw(config, Classes.equal(classes_MRHW), config.tasks, state.generator))


def learn(config: mann.Config, state: mann._State, batch: Batch) -> None:
    """Update the weights once; a lone worker has all tasks of the step."""
    mann._learn([Trainee(0, config, state.step + 1, state)], [batch])


def measure(config: mann.Config, classes_MRHW: Tensor, folders: list[Path], turns: int) -> dict[str, float]:
    """Seconds of a step: plain with files kept, plain with files read, plain on one given batch, and ours."""
    state = mann._State.fresh(config, 0, torch.device("cpu"))
    net = plain_net(state, config.ways, config.hidden)
    optimizer = torch.optim.Adam(net.parameters(), lr=config.lr)
    sources = {keep: PlainTasks(folders, config.ways, config.shots, keep=keep) for keep in (True, False)}
    for file in (str(file) for folder in folders for file in folder.iterdir()):
        sources[True].image(file)
    loaders = {keep: iter(DataLoader(source, batch_size=config.tasks)) for keep, source in sources.items()}
    given = next(loaders[True])
    steps: dict[str, Callable[[], object]] = {
        "plain_s": lambda: plain_step(net, optimizer, *next(loaders[True])),
        "plain_reading_s": lambda: plain_step(net, optimizer, *next(loaders[False])),
        "plain_given_s": lambda: plain_step(net, optimizer, *given),
        "ours_s": lambda: our_step(config, state, classes_MRHW),
        "our_draw_s": lambda: mann._draw(config, Classes.equal(classes_MRHW), config.tasks, state.generator),
    }
    a = torch.rand(SIDE, SIDE)
    steps |= {"product_s": lambda: a @ a.T, "onednn_s": lambda: mann.mann._times(a, a)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + WARM):
        for name, step in steps.items():
            took = seconds(step)
            if turn >= WARM:
                times[name].append(took)
    row = {name: statistics.median(taken) for name, taken in times.items()}
    row["floor_s"] = multiplications(config) / (2 * SIDE**3) * min(row.pop("product_s"), row.pop("onednn_s"))
    ratios = {name.replace("plain", "ratio").removesuffix("_s"): row[name] / row["ours_s"] for name in list(steps)[:3]}
    return row | ratios | {"of_floor": row["ours_s"] / row["floor_s"]}


def print_profile(config: mann.Config, classes_MRHW: Tensor) -> None:
    """What our step goes into, by operation and the time that is its own."""
    state = mann._State.fresh(config, 0, torch.device("cpu"))
    for _ in range(5):
        our_step(config, state, classes_MRHW)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(STEPS):
            our_step(config, state, classes_MRHW)
    rows = sorted(profiled.key_averages(), key=lambda row: -row.self_cpu_time_total)
    whole = sum(row.self_cpu_time_total for row in rows)
    print(f"\n{config.ways}-way {config.shots}-shot, hidden {config.hidden}, ours, by operation (of {STEPS} steps):")
    for row in rows[:SHOWN]:
        print(f"  {row.key:40}{row.self_cpu_time_total / whole:>7.1%}{row.count / STEPS:>8.0f} calls a step")


def write_files(classes_MRHW: Tensor, home: Path) -> list[Path]:
    """One folder a character, one PNG a drawing, black on white; the folders."""
    folders = [home / str(index) for index in range(len(classes_MRHW))]
    for folder, drawings in zip(folders, classes_MRHW.numpy(), strict=True):
        folder.mkdir()
        for at, drawing in enumerate(drawings):
            Image.fromarray(255 - drawing).save(folder / f"{at:02}.png")
    return folders


def main(*, smallest: bool) -> None:
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    found = all(row.found for row in archives.archives() if row.name == "omniglot")
    dataset = "omniglot" if found and not smallest else "glyphs"
    classes_MRHW = image_classes(dataset, "course", 0, "train")[: FEW if smallest else None]
    cases, turns = (CASES[:1], 1) if smallest else (CASES, TURNS)
    given = {"dataset": dataset} | ({"tasks": FEWEST_TASKS} if smallest else {})
    columns = ["plain_s", "plain_reading_s", "plain_given_s", "ours_s", "our_draw_s", "floor_s"]
    columns += ["ratio", "ratio_reading", "ratio_given", "of_floor"]
    print(f"{dataset}\n{'ways shots hidden':18}" + "".join(f"{name:>16}" for name in columns) + "   weights differ by")
    found = {}
    with tempfile.TemporaryDirectory() as home:
        folders = write_files(classes_MRHW, Path(home))
        for ways, shots, hidden in cases:
            config = mann.Config(**given, ways=ways, shots=shots, hidden=hidden)
            apart = check_agreement(config, classes_MRHW)
            row = {name: round(value, 5) for name, value in measure(config, classes_MRHW, folders, turns).items()}
            found[f"{ways}/{shots}/{hidden}"] = row
            figures = "".join(f"{row[name]:>16.4f}" for name in columns)
            differ = f"{apart[torch.float64]:.0e} (64), {apart[torch.float32]:.0e} (32)"
            print(f"{ways:4}{shots:6}{hidden:7} {figures}   {differ}")
    print_profile(mann.Config(**given), classes_MRHW)
    first = next(iter(found.values()))
    shown = {name: round(first[name], 2) for name in ("ratio", "of_floor", "ratio_reading", "ratio_given")}
    print(json.dumps({**shown, "threads": 1, "cases": found}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--smallest", action="store_true", help="few glyphs, one turn: shows only that it runs")
    main(smallest=parser.parse_args().smallest)
