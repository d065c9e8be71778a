"""How many episodes a second: one gather from packed bytes, against opening one PNG an image.

    python benchmarks/episodes.py [SECONDS] [--smallest]

One thread; Omniglot where its archives are at hand, else glyphs. The last line is one JSON object: `per_s` is the rate
of 5-way episodes, split `course`.
"""

import argparse
import io
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from cs330ray.course.data import archives, omniglot, unpack
from cs330ray.course.data.episodes import Classes, draw_episodes
from cs330ray.course.data.images import image_classes

TASKS, SHOTS, QUERIES = 16, 1, 15


def per_second(draw: Callable[[], object], seconds: float) -> float:
    """Batches a second, after one to warm up."""
    draw()
    batches, start = 0, time.perf_counter()
    while batches == 0 or time.perf_counter() - start < seconds:
        draw()
        batches += 1
    return batches / (time.perf_counter() - start)


def packed(classes: torch.Tensor, ways: int) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"tasks": TASKS, "ways": ways, "shots": SHOTS, "queries": QUERIES}

    def draw() -> object:
        episodes = draw_episodes(Classes.equal(classes), **sizes, generator=generator)
        return episodes.support_TNKCHW, episodes.query_TNQCHW  # gathered where they are asked for

    return draw


def image_by_image(members: list[bytes], ways: int) -> Callable[[], object]:
    """Open, resize and scale each drawing anew; from memory, so the disk costs nothing."""
    random = np.random.default_rng(0)

    def load(member: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(member)).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
        return 1 - np.asarray(image, dtype=np.float32) / 255

    def draw() -> torch.Tensor:
        images = [
            load(members[character * 20 + drawing])
            for _ in range(TASKS)
            for character in random.choice(len(members) // 20, ways, replace=False)
            for drawing in random.choice(20, SHOTS + QUERIES, replace=False)
        ]
        return torch.from_numpy(np.stack(images)).view(TASKS, ways, SHOTS + QUERIES, 1, 28, 28)

    return draw


def main(seconds: float, *, smallest: bool) -> None:
    torch.set_num_threads(1)
    archive = archives.ARCHIVES["images_background.zip"]
    found = all(row.found for row in archives.archives() if row.name == "omniglot")
    dataset = "omniglot" if found and not smallest else "glyphs"
    classes = {"course": image_classes(dataset, "course", 0, "train")}
    if dataset == "omniglot":
        classes["paper"] = image_classes(dataset, "paper", 0, "train")
    print(f"{dataset}: {TASKS} tasks, {SHOTS} shot, {QUERIES} queries a class, one thread")
    print(f"{'way of drawing':28} {'ways':>4} {'ms a batch':>11} {'episodes/s':>11}")
    rates = {}
    for split, classes_MRHW in classes.items():
        for ways in (5, 20):
            rate = per_second(packed(classes_MRHW, ways), 0.0 if smallest else seconds)
            rates[split, ways] = TASKS * rate
            print(f"{f'packed, {len(classes_MRHW)} classes':28} {ways:4} {1e3 / rate:11.2f} {TASKS * rate:11.0f}")
    if archive.found and not smallest:
        members = list(unpack.read_zip(archive, archive.found, omniglot.MEMBER_BYTES).values())
        rate = per_second(image_by_image(members, 5), seconds)
        ratio = rates["course", 5] / (TASKS * rate)
        print(f"{'one PNG an image':28} {5:4} {1e3 / rate:11.2f} {TASKS * rate:11.0f}")
        print(f"packed is {ratio:.0f} times as fast")
    print(json.dumps({"per_s": round(rates["course", 5])}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", nargs="?", type=float, default=2.0, help="of each way of drawing")
    parser.add_argument("--smallest", action="store_true", help="glyphs, one batch each: shows only that it runs")
    given = parser.parse_args()
    main(given.seconds, smallest=given.smallest)
