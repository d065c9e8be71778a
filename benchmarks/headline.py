"""How long from a command to a configuration that was chosen on fresh seeds and tested, against what one has today.

    python benchmarks/headline.py [--turns 3] [--kills 3] [--smallest]

The task: the recommender of homework 0 on MovieLens-100k (without its archive, on `planted`), course split, dim 32, one
layer of 64, batches of 256, 15 epochs with an evaluation each. 12 configurations of a scrambled Sobol sequence; the
best 2 by validation MSE at the last epoch again on 3 fresh seeds; the choice by their mean; its test. Five arms:

- `plain`: Ray Tune with OptunaSearch, tuned, and the course's own way of training (headline_arms/with_tune.py);
- `tune`: the same script with this project's learner, so that the rest is what the service costs or spares;
- `optuna`: Optuna alone and two processes with this project's learner: the floor of any service;
- `ours`: `cs330ray run`, its mirror included; `ours fused`: the same with trials that train together.

All have the same points, seeds, weights to begin with and batches, two slots, one thread a trial, packed data and
Python started anew. A confirmed run is tested in every arm; this project's test includes a refit, which plain's does
not. Arms take turns; then each is killed (SIGKILL to its process group) at half of its own median time, and the same
command given again; with `--kills 0` none is. A figure is a median over turns. Without a kill, and with one, the same
trial must be chosen by all arms in all turns: where it was not, a line says so.

The last line is one JSON object. The ratios are an arm's seconds over those of `ours fused`, or where that is not built
of `ours`; `ratio_killed` is plain's where both were killed, null where none was. Wherever one of them is quoted, all
stand in that sentence.
"""

import argparse
import itertools
import json
import shutil
import signal
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.headline_arms.arms import ARMS, SMALLEST, Size
from benchmarks.headline_arms.running import Ran, run
from benchmarks.workplace import workplace
from cs330ray.analysis.statistics import over_seeds, with_interval
from cs330ray.course.data import archives, movielens

Runs = Mapping[str, Sequence[Ran]]  # by arm


def taken_in_turns(work: Path, size: Size, turns: int, names: Sequence[str], whole: Runs | None = None) -> Runs:
    """Run arms in turns; given the runs of `whole` turns, with a kill at half of each one's median time."""
    found = defaultdict[str, list[Ran]](list)
    for turn in range(1, turns + 1):
        for number, name in enumerate(names):
            folder = work / f"{'whole' if whole is None else 'killed'}-{turn}-{number}"
            kill_s = None if whole is None else median(whole[name], "wall_s") / 2
            ran = run(ARMS[name], size, folder, kill_s)
            found[name].append(ran)
            how = "" if kill_s is None else f", killed after {kill_s:.1f} s"
            print(f"turn {turn}: {name} took {ran.wall_s:.1f} s{how}; trial {ran.choice} is chosen", flush=True)
            shutil.rmtree(folder)
    return found


def median(runs: Sequence[Ran], figure: str) -> float:
    """The median of one figure of several runs."""
    return statistics.median(getattr(ran, figure) for ran in runs)


def table(whole: Runs) -> Iterator[str]:
    """A row an arm: what it takes, and what it finds."""
    yield f"\n{'':12}{'wall s':>8}{'CPU s':>8}{'first s':>9}{'lines':>7}{'trial':>7}{'apart':>9}  {'test MSE':16} all s"
    for name, arm in ARMS.items():
        if not arm.is_built:
            yield f"{name:12}not built"
            continue
        runs = whole[name]
        figures = f"{median(runs, 'wall_s'):>8.1f}{median(runs, 'cpu_s'):>8.1f}{median(runs, 'first_s'):>9.1f}"
        same = f"{choices(runs):>7}{apart(runs, whole['ours']):>9.0e}  {with_interval(over_seeds(runs[0].test)):16}"
        yield f"{name:12}{figures}{arm.lines:>7}{same} {seconds(runs)}"
    yield "first: until a trial had ended; lines: those that a user writes, for plain with the course's net and loops;"
    yield "apart: validation MSE against ours, relative, the most of all trials."


def table_of_kills(whole: Runs, killed: Runs) -> Iterator[str]:
    """A row an arm: what a kill costs it."""
    yield f"\n{'killed':12}{'wall s':>8}{'more s':>8}{'twice':>7}{'trial':>7}  all s"
    for name, runs in killed.items():
        wall_s, twice = median(runs, "wall_s"), max(ran.twice for ran in runs)
        more_s = wall_s - median(whole[name], "wall_s")
        yield f"{name:12}{wall_s:>8.1f}{more_s:>8.1f}{twice:>7}{choices(runs):>7}  {seconds(runs)}"
    yield "twice: trials whose training ended twice."


def seconds(runs: Sequence[Ran]) -> str:
    """The seconds of each run."""
    return " ".join(f"{ran.wall_s:.1f}" for ran in runs)


def choices(runs: Sequence[Ran]) -> str:
    """The trials that runs chose."""
    return ",".join(sorted({str(ran.choice) for ran in runs}))


def apart(runs: Sequence[Ran], ours: Sequence[Ran]) -> float:
    """How far the validation of any trial is from ours, relative."""
    expected = ours[0].values
    return max(abs(value / expected[number] - 1) for ran in runs for number, value in ran.values.items())


def odd(how: str, found: Runs, expected: Ran) -> Iterator[str]:
    """A line for each turn in which an arm chose another trial than is expected, or has lost one."""
    for name, runs in found.items():
        for turn, ran in enumerate(runs, start=1):
            if ran.choice != expected.choice:
                yield f"{how}, turn {turn}: {name} chose trial {ran.choice}, not {expected.choice}"
            if lost := sorted(expected.values.keys() - ran.values.keys()):
                yield f"{how}, turn {turn}: {name} lost trial {', '.join(map(str, lost))}"


def figures(whole: Runs, killed: Runs) -> dict[str, float | bool | None]:
    """The ratios, each an arm's seconds over those of the service at its best, and whether all chose the same."""
    best = base(whole)
    ratios = {
        name: round(median(whole[arm], "wall_s") / median(whole[best], "wall_s"), 2)
        for name, arm in (
            ("ratio_plain", "plain"), ("ratio_tune_same_learner", "tune"), ("ratio_optuna_same_learner", "optuna"),
        )
    }  # fmt: skip
    both_killed = round(median(killed["plain"], "wall_s") / median(killed[best], "wall_s"), 2) if killed else None
    chosen = {ran.choice for found in (whole, killed) for runs in found.values() for ran in runs}
    return {**ratios, "ratio_killed": both_killed, "choice_equal": len(chosen) == 1}


def base(whole: Runs) -> str:
    """The arm that the others are compared with."""
    return "ours fused" if "ours fused" in whole else "ours"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=3, help="of all arms")
    parser.add_argument("--kills", type=int, default=3, help="turns in which each arm is killed once, 0 for none")
    parser.add_argument("--smallest", action="store_true", help="two trials of an epoch: shows only that it runs")
    given = parser.parse_args(arguments)
    if given.turns < 1:
        parser.error(f"--turns: expected 1 or more, got {given.turns}")
    if given.kills < 0:
        parser.error(f"--kills: expected 0 or more, got {given.kills}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is under way is ended at once
    found = archives.ARCHIVES[movielens.FILE].found is not None
    size, turns, kills = Size("movielens" if found else "planted"), given.turns, given.kills
    if given.smallest:
        size, turns, kills = SMALLEST, 1, 1
    movielens.pack(size.dataset)  # else one arm would, and the others would not
    print(f"{size.dataset}: {size.trials} trials, {size.top} confirmed on {size.seeds} seeds", flush=True)
    names = [name for name, arm in ARMS.items() if arm.is_built]
    with workplace("head-") as work:
        if not given.smallest:
            print("to warm up:", flush=True)
            taken_in_turns(work / "warm", SMALLEST, 1, names)
        whole = taken_in_turns(work, size, turns, names)
        expected = whole["ours"][0]
        say(table(whole), odd("whole", whole, expected))
        struck = ["plain", base(whole)] if given.smallest else names  # the two that a ratio needs
        killed = taken_in_turns(work, size, kills, struck, whole)
    if killed:
        say(table_of_kills(whole, killed), odd("killed", killed, expected))
    print(f"The ratios are over {base(whole)}.")
    print(json.dumps(figures(whole, killed)))


def say(*lines: Iterator[str]) -> None:
    """Print lines at once."""
    for line in itertools.chain(*lines):
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
