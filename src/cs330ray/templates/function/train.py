"""Train a small network on two moons. Put your own training here: a study calls `train`, and `test` in confirmation."""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Config:
    """What a study may search, fix or compare; what it does not name has its default."""

    lr: float = 0.01
    width: int = 16


def train(config: Config, seed, steps, trial):
    """Train up to `steps` steps, from `trial.resume` where that is not None, and report with `trial.log`."""
    torch.manual_seed(seed)
    network, optimizer = made(config)
    start = load(trial.resume, network, optimizer) if trial.resume is not None else 0
    for step in range(start + 1, steps + 1):
        x, classes = moons(seed * 1_000_000 + step, 32)
        loss = torch.nn.functional.cross_entropy(network(x), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == steps:
            checkpoint = trial.checkpoints / f"step-{step}"
            checkpoint.mkdir()
            state = {"step": step, "network": network.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, checkpoint / "state.pt")
            metrics = {"val_accuracy": accuracy(network, seed=-1), "train_loss": loss.item()}
            trial.log(step, metrics, checkpoint=checkpoint)


def test(config: Config, seed, checkpoint):
    """Score a checkpoint on the test split; the metrics."""
    network, optimizer = made(config)
    load(checkpoint, network, optimizer)
    return {"test_accuracy": accuracy(network, seed=-2)}


def made(config):
    network = torch.nn.Sequential(torch.nn.Linear(2, config.width), torch.nn.ReLU(), torch.nn.Linear(config.width, 2))
    return network, torch.optim.Adam(network.parameters(), lr=config.lr)


def load(checkpoint, network, optimizer):
    """Read a checkpoint; its step."""
    state = torch.load(Path(checkpoint) / "state.pt", weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def moons(seed, points):
    """Two half circles that reach into each other: x (points, 2) and classes (points,)."""
    draws = torch.Generator().manual_seed(seed)
    classes = torch.arange(points) % 2
    angle = torch.pi * torch.rand(points, generator=draws)
    x = torch.stack([angle.cos() + classes, angle.sin() * (1 - 2 * classes) + 0.5 * classes], 1)
    return x + 0.3 * torch.randn(points, 2, generator=draws), classes


def accuracy(network, seed):
    """The share of 500 points, the same in every trial, whose class the network names."""
    x, classes = moons(seed, 500)
    with torch.no_grad():
        return (network(x).argmax(1) == classes).double().mean().item()
