"""What a ProtoNet training step costs, its data included, against the plain one that the course's solutions write.

    python benchmarks/protonet_step.py [imageio | pil] [--smallest]

The plain step reads each image of its episodes from a PNG file of 28x28 pixels, embeds one task at a time, its support
and then its queries, and differentiates the mean loss of all tasks at the end. imageio reads the files, as in the
solutions; Pillow alone is several times faster. Same net, episodes, precision and results, one
thread, 16 tasks 5-way with 15 queries. The two take turns, so that a busy machine slows both; a figure is the median
over its turns of the seconds for which the processor worked on it.

The floor is the step's multiplications at the best speed found here, in the same turns, for one convolution of 64
channels whose images are in the cache. The last line is one JSON object: `ratio` is that of the whole step of the first
case, `of_floor` our time over the floor.
"""

# ruff: noqa: N815 - the fields carry their shapes

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cs330ray.course.data import archives
from cs330ray.course.data.episodes import Classes, draw_episodes
from cs330ray.course.data.images import image_classes
from cs330ray.course.learners import protonet
from cs330ray.course.learners.fewshot import conv4
from cs330ray.course.learners.fewshot.tasks import Batch
from cs330ray.course.learners.protonet import ProtoNet

WAYS, QUERIES, FILTERS, SIDE = 5, 15, 64, 28
TASKS, CASES = 16, [(1, 9), (5, 5)]  # shots, turns
FEWEST_TASKS, SMALLEST = 1, (1, 1)
FEW = 20  # characters at the smallest size
LR = 1e-3
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 2e-2,
}  # of loss and gradient, relative; float32 flips ReLUs and pools
KINDS = {
    "convolutions": ("conv",),
    "pooling": ("max_pool2d", "cat"),
    "statistics, normalisation and ReLU": (
        "batch_norm",
        "bmm",
        "stack",
        "addcmul",
        "mul",
        "add",
        "sum",
        "clamp",
        "thre",
    ),
}


@dataclass(frozen=True)
class Images:
    """The training characters: packed, as we have them, and one file each, as the course has them."""

    classes_MRHW: Tensor
    places_MRHW: Tensor  # (M, R, 1, 3) of bytes: where a drawing stands, so that an episode says what it drew
    folder: Path
    reader: str
    tasks: int  # of a step

    @classmethod
    def write(cls, folder: Path, reader: str, *, smallest: bool) -> "Images":
        """Write one PNG a drawing, ink 0 on 255: Omniglot where its archives are at hand, else glyphs."""
        found = all(archive.found for archive in archives.archives() if archive.name == "omniglot")
        dataset = "omniglot" if found and not smallest else "glyphs"
        classes_MRHW = image_classes(dataset, "course", 0, "train")[: FEW if smallest else None]
        classes, drawings = classes_MRHW.shape[:2]
        for place, image in enumerate(classes_MRHW.flatten(0, 1).numpy()):
            Image.fromarray(255 - image).save(folder / f"{place // drawings:04}_{place % drawings:02}.png")
        at = [[[[m // 256, m % 256, r]] for r in range(drawings)] for m in range(classes)]
        tasks = FEWEST_TASKS if smallest else TASKS
        return cls(classes_MRHW, torch.tensor(at, dtype=torch.uint8), folder, reader, tasks)

    def draw(self, shots: int, seed: int) -> Batch:
        """Our way: one gather from packed bytes."""
        return self._draw(self.classes_MRHW, shots, seed)

    def paths(self, shots: int, seed: int) -> list[tuple[list[Path], list[Path]]]:
        """The files of the same episodes: of each task those of its support and of its queries, in class order."""
        drawn = self._draw(self.places_MRHW, shots, seed)
        return [
            (self._files(support), self._files(query))
            for support, query in zip(drawn.support_TNKCHW, drawn.query_TNQCHW, strict=True)
        ]

    def _draw(self, classes_MRHW: Tensor, shots: int, seed: int) -> Batch:
        sizes = {"tasks": self.tasks, "ways": WAYS, "shots": shots, "queries": QUERIES}
        episodes = draw_episodes(Classes.equal(classes_MRHW), **sizes, generator=torch.Generator().manual_seed(seed))
        return Batch(episodes.support_TNKCHW, episodes.query_TNQCHW)

    def _files(self, places: Tensor) -> list[Path]:
        rows = (places * 255).round().int().view(-1, 3).tolist()
        return [self.folder / f"{256 * high + low:04}_{drawing:02}.png" for high, low, drawing in rows]


def load_image(path: Path, reader: str) -> Tensor:
    if reader == "imageio":
        import imageio.v2

        x = torch.tensor(imageio.v2.imread(path), dtype=torch.float32).reshape(1, SIDE, SIDE)
    else:
        with Image.open(path) as image:
            x = torch.tensor(np.asarray(image), dtype=torch.float32).reshape(1, SIDE, SIDE)
    return 1 - x / 255


def plain_data(images: Images, shots: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    def load(paths: list[Path]) -> Tensor:
        return torch.stack([load_image(path, images.reader) for path in paths])

    return [(load(support), load(query)) for support, query in images.paths(shots, seed)]


def plain_network(params: dict[str, Tensor], x: Tensor) -> Tensor:
    for block in range(1, 5):
        x = F.conv2d(x, params[f"conv{block}.weight"], padding=1)
        x = F.batch_norm(x, None, None, params[f"norm{block}.scale"], params[f"norm{block}.shift"], training=True)
        x = F.max_pool2d(F.relu(x), 2)
    return x.flatten(1)


def plain_backward(params: dict[str, Tensor], tasks: list[tuple[Tensor, Tensor]]) -> float:
    losses = []
    for support, query in tasks:
        support_labels = torch.arange(WAYS, device=support.device).repeat_interleave(len(support) // WAYS)
        query_labels = torch.arange(WAYS, device=support.device).repeat_interleave(QUERIES)
        z_support, z_query = plain_network(params, support), plain_network(params, query)
        prototypes = torch.stack([z_support[support_labels == label].mean(dim=0) for label in range(WAYS)])
        support_logits, query_logits = (-(z[:, None] - prototypes).square().sum(dim=-1) for z in (z_support, z_query))
        losses.append(F.cross_entropy(query_logits, query_labels))
        for logits, labels in ((support_logits, support_labels), (query_logits, query_labels)):
            (logits.argmax(dim=-1) == labels).float().mean().item()
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item()


def our_backward(params: dict[str, Tensor], batch: Batch) -> float:
    return protonet.backward(ProtoNet("squared"), params, batch)["loss"].mean().item()


def drawn_params(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    drawn = conv4.init("pooled", filters=FILTERS, ways=None, generator=torch.Generator().manual_seed(0))
    return {name: param.to(dtype).requires_grad_() for name, param in drawn.items()}


def check_agreement(images: Images, shots: int) -> dict[torch.dtype, float]:
    """Compare what both read, and then their losses and gradients on it; the greater relative difference."""
    batch, read, found = images.draw(shots, 0), plain_data(images, shots, 0), {}
    ours_TBCHW = torch.cat([batch.support_TNKCHW.flatten(1, 2), batch.query_TNQCHW.flatten(1, 2)], dim=1)
    torch.testing.assert_close(torch.stack([torch.cat(task) for task in read]), ours_TBCHW, rtol=0, atol=1e-6)
    for dtype, tolerance in TOLERANCE.items():
        same = Batch(batch.support_TNKCHW.to(dtype), batch.query_TNQCHW.to(dtype))
        tasks = list(zip(same.support_TNKCHW.flatten(1, 2), same.query_TNQCHW.flatten(1, 2), strict=True))
        plain, ours = drawn_params(dtype), drawn_params(dtype)
        loss, our_loss = plain_backward(plain, tasks), our_backward(ours, same)
        grad, our_grad = (torch.cat([param.grad.flatten() for param in params.values()]) for params in (plain, ours))
        found[dtype] = max(abs(loss - our_loss) / loss, ((grad - our_grad).norm() / grad.norm()).item())
        assert found[dtype] <= tolerance, f"{shots} shots, {dtype}: {found[dtype]:.1e} apart"
    return found


def multiplications(tasks: int, shots: int) -> float:
    """Floating-point operations of a step's convolutions: forward 1, backward 2 (the first has no image gradient)."""
    sides = [SIDE // 2**block for block in range(4)]
    forward = [2 * 9 * (1 if block == 0 else FILTERS) * FILTERS * side**2 for block, side in enumerate(sides)]
    return float(tasks * WAYS * (shots + QUERIES) * (2 * forward[0] + 3 * sum(forward[1:])))


def convolution_speed() -> float:
    """Floating-point operations a second of one convolution that feels no memory: 16 images of 14x14, 64 channels."""
    x, w = torch.rand(16, FILTERS, 14, 14).to(memory_format=torch.channels_last), torch.rand(FILTERS, FILTERS, 3, 3)
    return 16 * 2 * 9 * FILTERS**2 * 14**2 / min(seconds(lambda: F.conv2d(x, w, padding=1)) for _ in range(20))


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def timed_step(side: str, images: Images, shots: int, seed: int) -> dict[str, float]:
    """One step of one side: the seconds of its data, of its network, and of all with Adam's."""
    params = drawn_params()
    optimizer = torch.optim.Adam(params.values(), lr=LR)
    read: Callable[..., object] = images.draw if side == "ours" else lambda *given: plain_data(images, *given)
    backward: Callable[..., float] = our_backward if side == "ours" else plain_backward
    start = time.process_time()
    data = read(shots, seed)
    ready = time.process_time()
    backward(params, data)
    differentiated = time.process_time()
    optimizer.step()
    return {
        "step": time.process_time() - start,
        "network": differentiated - ready,
        "data": ready - start,
    }


def measure(images: Images, shots: int, turns: int) -> dict[str, float]:
    times: dict[str, list[float]] = {}
    for turn in range(turns + 1):
        rows = {side: timed_step(side, images, shots, turn) for side in ("plain", "ours")}
        found = {f"{part}_{side}_s": took for side, row in rows.items() for part, took in row.items()}
        found["floor_s"] = multiplications(images.tasks, shots) / convolution_speed()
        if turn:  # the first turn warms up
            for name, took in found.items():
                times.setdefault(name, []).append(took)
    row = {name: statistics.median(took) for name, took in times.items()}
    row |= {f"{part}_ratio": row[f"{part}_plain_s"] / row[f"{part}_ours_s"] for part in ("step", "network", "data")}
    return row | {"of_floor": row["step_ours_s"] / row["floor_s"]}


class Kinds(TorchDispatchMode):
    """Sums up how long the processor works on each kind of operation, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.took = dict.fromkeys(KINDS, 0.0)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        start = time.process_time()
        found = operation(*args, **(kwargs or {}))
        took, name = time.process_time() - start, str(operation).removeprefix("aten.")
        for kind, parts in KINDS.items():
            if name.startswith(parts) or (kind == "convolutions" and "conv" in name):
                self.took[kind] += took
                break
        return found


def shares(images: Images, shots: int, step_s: float) -> dict[str, float]:
    """What our step's time goes into; the rest is small operations, autograd and Python."""
    with Kinds() as kinds:
        timed_step("ours", images, shots, 0)
    found = {kind: took / step_s for kind, took in kinds.took.items()}
    return found | {"the rest": 1 - sum(found.values())}


def main(reader: str, *, smallest: bool) -> None:
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        images = Images.write(Path(folder), reader, smallest=smallest)
        print(f"{'shots':>5} {'part':8}{'plain s':>9}{'ours s':>9}{'ratio':>8}")
        for shots, turns in [SMALLEST] if smallest else CASES:
            apart = check_agreement(images, shots)
            row = found[f"{shots} shots"] = measure(images, shots, turns)
            for part in ("step", "network", "data"):
                plain_s, ours_s = row[f"{part}_plain_s"], row[f"{part}_ours_s"]
                print(f"{shots:>5} {part:8}{plain_s:>9.4f}{ours_s:>9.4f}{row[f'{part}_ratio']:>8.2f}")
            print(f"      floor {row['floor_s']:.3f} s, our step {row['of_floor']:.2f} times that; ", end="")
            print(f"results differ by {apart[torch.float64]:.0e} (64), {apart[torch.float32]:.0e} (32)")
            into = shares(images, shots, row["step_ours_s"])
            print("      our step: " + ", ".join(f"{kind} {share:.0%}" for kind, share in into.items()), flush=True)
    first = next(iter(found.values()))
    cases = {case: {name: round(value, 4) for name, value in row.items()} for case, row in found.items()}
    report = {
        "ratio": round(first["step_ratio"], 2),
        "of_floor": round(first["of_floor"], 2),
        "threads": 1,
        "reader": reader,
    }
    print(json.dumps(report | {"cases": cases}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("reader", nargs="?", choices=["imageio", "pil"], default="imageio")
    parser.add_argument("--smallest", action="store_true", help="few glyphs, one turn: shows only that it runs")
    given = parser.parse_args()
    main(given.reader, smallest=given.smallest)
