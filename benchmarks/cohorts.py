"""What it costs to train several trials as one computation, against each alone; on a CPU their numbers are equal.

    python benchmarks/cohorts.py [--before CHECKOUT] [--members 4] [--turns 9] [--smallest]

One thread. `alone`, `together` and `one` (together, but of one member) take turns, so that a busy machine slows all; a
figure is the processor seconds of a member's turn, the least of its turns. `alone` is this code, or with `--before`
that of another checkout, such as an earlier version. Every row and every file of a checkpoint must be equal to the bit
in all three, else it fails. The last line is one JSON object: for each system `alone` over `together`, and with `_one`
behind its name `alone` over `one`.
"""

import argparse
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SIDES = ("alone", "together", "one")
CASES: dict[str, tuple[str, dict[str, Any], dict[str, float]]] = {  # trainable, what all have, what differs by member
    "maml": (
        "cs330ray.course.systems.maml",
        {"dataset": "glyphs", "body": "pooled", "filters": 16, "tasks": 4, "queries": 5, "val_tasks": 1},
        {"inner_lr": 0.1, "outer_lr": 0.002},
    ),
    "multitask": (
        "cs330ray.course.systems.multitask",
        {"dataset": "planted", "batch": 256},
        {"lr": 0.001, "weight_decay": 1e-6},
    ),
    "mann": ("cs330ray.course.systems.mann", {"dataset": "glyphs", "hidden": 8, "val_tasks": 1}, {"lr": 0.001}),
}
STEPS = {"maml": 20, "multitask": 2, "mann": 40}  # of a turn


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=Path, help="a checkout whose code is `alone`")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--smallest", action="store_true", help="one turn of two members, as a test has it")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    told = parser.parse_args()
    members, turns = (2, 1) if told.smallest else (told.members, told.turns)
    if told.side:
        serve(told.side, told.case, members, turns, 2 if told.smallest else STEPS[told.case])
        return
    print(f"{members} members, one thread; ms of CPU a step and member")
    print(f"{'':10} {'alone':>8} {'together':>8} {'one':>8}   alone over together, over one")
    found: dict[str, float] = {}
    for case in CASES:
        costs = measured(case, members, turns, told.before, smallest=told.smallest)
        alone, together, one = (1000 * costs[side] for side in SIDES)
        print(f"{case:10} {alone:8.2f} {together:8.2f} {one:8.2f}   x{alone / together:.2f}, x{alone / one:.2f}")
        found |= {case: round(alone / together, 3), f"{case}_one": round(alone / one, 3)}
    print(json.dumps(found))


def measured(case: str, members: int, turns: int, before: Path | None, *, smallest: bool) -> dict[str, float]:
    """Seconds of CPU a step and member, by side. Exits where the sides' numbers differ."""
    here = Path(__file__).parents[1]
    told = [sys.executable, __file__, "--case", case, "--members", str(members), "--turns", str(turns)]
    told += ["--smallest"] * smallest
    running = {}
    for side in SIDES:
        checkout = before if before is not None and side == "alone" else here
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CS330RAY_DEVICE": "cpu"}
        environment["PYTHONPATH"] = str(checkout.resolve() / "src")
        running[side] = subprocess.Popen(
            [*told, "--side", side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
    least, digests = dict.fromkeys(SIDES, float("inf")), {}
    try:
        for _ in range(turns):
            for side in SIDES:
                least[side] = min(least[side], float(asked(running[side])))
        for side in SIDES:
            digests[side] = asked(running[side])
    finally:
        for process in running.values():
            process.kill()
            process.communicate()
    if len(set(digests.values())) > 1:
        sys.exit(f"{case}: rows and checkpoints must be equal to the bit, but are {digests}")
    return least


def asked(process: subprocess.Popen[str]) -> str:
    """Have a process do its next turn; what it answers."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    answer = process.stdout.readline().strip()
    if not answer:
        sys.exit("one of the processes ended; see above")
    return answer


def serve(side: str, case: str, members: int, turns: int, steps: int) -> None:
    """Train a turn for each line on standard input, then answer with a digest of all that was reached."""
    name, common, differing = CASES[case]
    trainable = importlib.import_module(name)
    configs = [
        trainable.Config(
            **common, **{key: value * (member + 1) for key, value in differing.items()}, eval_every_steps=steps
        )
        for member in range(members)
    ]
    advances = [
        begun(trainable, side, configs[:], members_of, (turns + 1) * steps) for members_of in groups(side, members)
    ]
    digest = hashlib.sha256()
    rows: dict[int, list[str]] = {member: [] for member in range(members)}

    def turn() -> float:
        began = time.process_time()
        moments = [next(advance) for advance in advances]
        cost = time.process_time() - began
        for moment in moments:
            for member, progress in moment.items():
                rows[member].append(said(progress))
        return cost / steps / members

    turn()  # the first one also reads the data
    for _ in range(turns):
        sys.stdin.readline()
        print(turn(), flush=True)
    sys.stdin.readline()
    for member in range(members):
        digest.update("".join(rows[member]).encode())
    print(digest.hexdigest(), flush=True)


def groups(side: str, members: int) -> list[list[int]]:
    """Who trains with whom."""
    return [list(range(members))] if side == "together" else [[member] for member in range(members)]


def begun(trainable: Any, side: str, configs: Sequence[Any], of: Sequence[int], steps: int) -> Iterator[dict[int, Any]]:
    """Train some members; the rows of each moment, by member."""
    if side == "alone":
        (member,) = of
        for progress in trainable.train(configs[member], member, steps):
            yield {member: progress}
        return
    from cs330ray.trial.contract import Member

    for moment in trainable.train_many([Member(configs[member], member, steps) for member in of]):
        yield {of[place]: progress for place, progress in moment.items()}


def said(progress: Any) -> str:
    """A row, and the digest of its checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        progress.save(Path(folder))
        files = [
            f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in sorted(Path(folder).iterdir())
        ]
    return json.dumps([progress.step, sorted(progress.metrics.items()), files])


if __name__ == "__main__":
    main()
