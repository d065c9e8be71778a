"""Adam (Kingma and Ba, 2015), bit for bit that of PyTorch, without the compiler that its optimiser classes import.

`torch.optim.Adam(...)` loads torch._dynamo and with it 70 MiB and two seconds in every process that trains.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam

BETAS, EPS = (0.9, 0.999), 1e-8
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Adam:
    """As `torch.optim.Adam(params, lr=lr, weight_decay=weight_decay, fused=fused)`; `lr` may change at any time."""

    def __init__(
        self, params: Iterable[Tensor], *, lr: float, weight_decay: float = 0.0, fused: bool | None = None
    ) -> None:
        self.params = list(params)
        self.lr, self.weight_decay = lr, weight_decay
        self.moments: dict[int, dict[str, Tensor]] = {}  # by place in `params`, from its first gradient on
        self._fused = fused

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for param in self.params:
            param.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take one step along the gradients; a parameter without one stays as it is."""
        moved = [place for place, param in enumerate(self.params) if param.grad is not None]
        for place in moved:
            if place not in self.moments:
                self.moments[place] = self._begun(self.params[place])
        held = [self.moments[place] for place in moved]
        adam(
            [self.params[place] for place in moved],
            [grad for place in moved if (grad := self.params[place].grad) is not None],
            [moments["exp_avg"] for moments in held],
            [moments["exp_avg_sq"] for moments in held],
            [],
            [moments["step"] for moments in held],
            fused=self._fused,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=self.lr,
            weight_decay=self.weight_decay,
            eps=EPS,
            maximize=False,
        )

    def load(self, moments: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Take the moments that another held, by place in `params`."""
        self.moments = {
            place: {name: self._placed(name, tensor, self.params[place]) for name, tensor in named.items()}
            for place, named in moments.items()
        }

    def _begun(self, param: Tensor) -> dict[str, Tensor]:
        step = torch.zeros((), dtype=torch.float32, device=param.device if self._fused else "cpu")
        return {"step": step, "exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}

    def _placed(self, name: str, tensor: Tensor, param: Tensor) -> Tensor:
        """Copy a moment to where its parameter is, and in its type; a count of steps as a step leaves it."""
        if name != "step":
            return tensor.to(device=param.device, dtype=param.dtype, copy=True)
        return tensor.to(device=param.device if self._fused else "cpu", dtype=torch.float32, copy=True)
