"""Real studies of two cells that differ in nothing but their random numbers: how often are they told apart?

    python benchmarks/identical.py [--studies 20] [--smallest]

Each study is run once with one search of each cell, and grown to three: two trials a search, the best confirmed on two
seeds. After one search nothing may be claimed; after three, what the level of the first look allows, .04.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

STUDY = """
name = "{name}"
trainable = "benchmarks.salted"
objective = "val_accuracy"
seed = {seed}
[compare]
salt = [0, 1]
[search]
rate = {{ low = 1e-3, high = 10.0, log = true }}
[budget]
trials = 2
steps = 60
[resources]
checkpoint = "60s"
[confirm]
top = 1
seeds = 2
"""


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--studies", type=int, default=20)
    given.add_argument("--smallest", action="store_true", help="one study: shows only that it runs")
    arguments = given.parse_args()
    studies = 1 if arguments.smallest else arguments.studies
    with tempfile.TemporaryDirectory() as folder:
        found = [measured(Path(folder), seed) for seed in range(studies)]
    for seed, (after_one, after_three) in enumerate(found):
        print(f"study {seed:>2}: {after_one} claims after one search each, {after_three} after three")
    one, three = (sum(counts) for counts in zip(*found, strict=True))
    print(json.dumps({"studies": studies, "claims_after_one_search": one, "claims_after_three": three}))


def measured(home: Path, seed: int) -> tuple[int, int]:
    """The claims of one study after one search of each cell, and after three."""
    from cs330ray.report.open_study import opened
    from cs330ray.service.run import run
    from cs330ray.spec import reading

    name, file = f"identical-{seed}", home / f"{seed}.toml"
    file.write_text(STUDY.format(name=name, seed=seed))
    counts = []
    for searches in (1, 3):
        run(reading.read(file, [f"repeat.searches={searches}"]), home, mirror=False)
        claim = opened(name, home).claim
        assert claim is not None, f"{name} is not whole"
        counts.append(sum(pair.told for pair in claim.pairs))
    return counts[0], counts[1]


if __name__ == "__main__":
    main()
