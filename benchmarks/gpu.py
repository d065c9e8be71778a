"""All that only a GPU can show, in at most eight minutes: one script, one table.

    python benchmarks/gpu.py [--device cuda] [--parts tests,steps] [--smallest]

- `tests`: every test that is marked `gpu`;
- `resumed`: a trial of each system, killed behind a checkpoint and resumed, equals one that was left alone;
- `service`: two trials at gpus = 0.25 at once; a trial that runs out of memory ends, and its worker goes on;
- `bf16`: what is multiplied in it, and how far losses are from float32's;
- `steps`: steps a second of each system as it trains, and of the course's own loop on the same GPU;
- `together`: MANN, the quickstart's MAML and the recommender with 1, 4 and 16 members that train together.

Each part is a process with a budget of seconds. What fails, or is not done by then, is a row with its reason; the
other parts run all the same, and the exit status is 1. `--device cpu`, which `--smallest` means too, does the same at
tiny sizes, so that it is known to work where there is a GPU. What this version cannot do says `not built`. The last
line is one JSON object.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.faults import kill_all
from benchmarks.workplace import environment, workplace

ROOT = Path(__file__).parents[1]
BUDGETS_S = {"tests": 150, "resumed": 80, "service": 80, "bf16": 40, "steps": 80, "together": 50}  # 8 minutes in all
CPU_TIMES = 6  # as long may a part take on a CPU that others use
ROWS, SAID = "rows.jsonl", "said.txt"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    part: str
    name: str
    found: str
    seconds: float
    failed: bool = False


def run_part(part: str, where: str, folder: Path) -> Iterator[Row]:
    """Run a part in a process of its own until its budget is spent; its rows, and one more where it ended badly."""
    (folder / "r").mkdir(parents=True)
    command = [sys.executable, __file__, "--part", part, "--device", where, "--folder", str(folder)]
    budget_s = BUDGETS_S[part] * (1 if where == "cuda" else CPU_TIMES)
    began, code = time.monotonic(), None
    with (folder / SAID).open("wb") as said:
        process = subprocess.Popen(
            command, env=environment(folder) | {"CS330RAY_DEVICE": where}, stdout=said, stderr=said,
            start_new_session=True,
        )  # fmt: skip
    try:
        code = process.wait(budget_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        kill_all([str(folder)])
        process.wait()
    lines = (folder / ROWS).read_text().splitlines() if (folder / ROWS).exists() else []
    yield from (Row(**json.loads(line)) for line in lines)
    if code != 0:
        words = [line for line in (folder / SAID).read_text(errors="replace").splitlines() if line.strip()]
        last = (words or ["no word"])[-1][:200]
        why = f"not done within {budget_s} s" if code is None else f"it ended with {code}: {last}"
        yield Row(part, "the rest", why, time.monotonic() - began, failed=True)


def do_part(part: str, where: str, folder: Path) -> None:
    """Do a part in this process, and write each row as soon as it is there."""
    for name, finds in rows_of(part)(where, folder):
        began = time.monotonic()
        try:
            found, failed = finds(), False
        except Exception as error:  # noqa: BLE001 - what fails is a row
            from cs330ray.words import typed_first_line

            found, failed = typed_first_line(error), True
        row = Row(part, name, found, time.monotonic() - began, failed)
        with (folder / ROWS).open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def rows_of(part: str) -> Callable[[str, Path], Iterator[tuple[str, Callable[[], str]]]]:
    """The function that yields a part's rows; imported in the part's own process alone."""
    if part in ("steps", "together"):
        from benchmarks.gpu_parts import speed

        return {"steps": speed.steps, "together": speed.together}[part]
    from benchmarks.gpu_parts import promises

    return {
        "tests": promises.tests, "resumed": promises.resumed, "service": promises.service, "bf16": promises.bf16,
    }[part]  # fmt: skip


def line(row: Row) -> str:
    """A row of the table."""
    return f"{row.part:10}{row.seconds:>7.1f}  {row.name:34}{'FAILED: ' if row.failed else ''}{row.found}"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--parts", default=",".join(BUDGETS_S), help="with commas between")
    parser.add_argument("--smallest", action="store_true", help="on a CPU, at tiny sizes: shows only that it runs")
    parser.add_argument("--part", choices=list(BUDGETS_S), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.part is not None:
        do_part(given.part, given.device, given.folder)
        return 0
    where, parts = "cpu" if given.smallest else given.device, given.parts.split(",")
    if unknown := [part for part in parts if part not in BUDGETS_S]:
        parser.error(f"--parts: expected some of {','.join(BUDGETS_S)}, got {','.join(unknown)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is under way is ended
    began, rows = time.monotonic(), list[Row]()
    print(f"{device_name(where)}\n{'part':10}{'s':>7}  {'what':34}found", flush=True)
    with workplace("gpu-") as work:
        for part in parts:
            for row in run_part(part, where, work / part):
                rows.append(row)
                print(line(row), flush=True)
    failed = sum(row.failed for row in rows)
    figures = {"failed": failed, "not_built": sum(row.found == "not built" for row in rows), "rows": len(rows)}
    print(json.dumps({**figures, "seconds": round(time.monotonic() - began)}))
    return int(failed > 0 or not rows)


def device_name(where: str) -> str:
    """What it runs on, told by a process of its own. Exits where there is no such device."""
    if where == "cpu":
        return f"CPU, {os.cpu_count()} cores"
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    name = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    if not name:
        raise SystemExit("--device: expected a CUDA GPU, got none; write --device cpu to see that all of it runs")
    return name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
