"""Train a small network on two moons. Put your own training here: a study knows its arguments and what it logs."""

import argparse
import os
from pathlib import Path

import torch

import cs330ray

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--width", type=int, default=16)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--test", metavar="CHECKPOINT", help="score this one on the test split, and train nothing")
args = parser.parse_args()


def moons(seed: int, points: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two half circles that reach into each other: x (points, 2) and classes (points,)."""
    draws = torch.Generator().manual_seed(seed)
    classes = torch.arange(points) % 2
    angle = torch.pi * torch.rand(points, generator=draws)
    x = torch.stack([angle.cos() + classes, angle.sin() * (1 - 2 * classes) + 0.5 * classes], 1)
    return x + 0.3 * torch.randn(points, 2, generator=draws), classes


def accuracy(seed: int) -> float:
    """The share of 500 points, the same in every trial, whose class the network names."""
    x, classes = moons(seed, 500)
    with torch.no_grad():
        return (network(x).argmax(1) == classes).double().mean().item()


torch.manual_seed(args.seed)
network = torch.nn.Sequential(torch.nn.Linear(2, args.width), torch.nn.ReLU(), torch.nn.Linear(args.width, 2))
optimizer = torch.optim.Adam(network.parameters(), lr=args.lr)
start = 0

resume = args.test or os.environ.get("CS330RAY_RESUME")  # set where a study resumes a trial
if resume:
    state = torch.load(Path(resume) / "state.pt", weights_only=True)
    start = state["step"]
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])

if args.test:
    cs330ray.log(step=start, test_accuracy=accuracy(seed=-2))
    raise SystemExit

for step in range(start + 1, args.steps + 1):
    x, classes = moons(args.seed * 1_000_000 + step, 32)
    loss = torch.nn.functional.cross_entropy(network(x), classes)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0 or step == args.steps:
        checkpoint = Path(os.environ.get("CS330RAY_CHECKPOINTS_DIR", "checkpoints")) / f"step-{step}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        state = {"step": step, "network": network.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, checkpoint / "state.pt")
        cs330ray.log(step=step, val_accuracy=accuracy(seed=-1), train_loss=loss.item(), checkpoint=checkpoint)
