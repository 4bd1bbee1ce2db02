"""MuonAdamW: one optimizer that orthogonalises the updates of hidden matrices and leaves all else to AdamW."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
"""Coefficients of the five polynomials, from table 1 of Amsel et al. 2025 (arXiv:2505.16932)."""

SAFETY = 1.01
"""Room for rounding, as the paper leaves it: singular values lifted over 1 in half precision would run away."""

BATCH_ELEMENTS = 2**25
"""Most elements that are orthogonalised together: 64 MiB in half precision, so that a 4 GB card bears it."""


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for groups of kind "muon", AdamW for "adamw".

    A group of kind "muon" holds matrices (out, in) and needs lr, weight_decay and momentum; its step moves each matrix
    by lr * sqrt(out / in) in every direction of its momentum alike, which keeps one lr right over widths (Bernstein
    and Newhouse 2024, arXiv:2409.20325). A group of kind "adamw" needs lr, weight_decay, betas and eps. In both, decay
    is a share lr * weight_decay of the weights. Parameters without a gradient stay as they are.

    Raises ValueError for a group of another kind, or a muon group with anything but matrices.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], dtype: torch.dtype) -> None:
        self.dtype = dtype
        """The type that matrices are orthogonalised in; the momentum stays in the parameter's own."""
        super().__init__(groups, {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, checked."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group.get("kind") not in ("muon", "adamw"):
            raise ValueError(
                f"a parameter group of kind {group.get('kind')!r}; there are 'muon' and 'adamw'"
            )
        if group["kind"] == "muon" and any(p.ndim != 2 for p in group["params"]):
            raise ValueError("a parameter group of kind 'muon' can only hold matrices")
        group["fused"] = (
            group["kind"] == "adamw"
        )  # on loading, torch then puts the step counts beside the parameters

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                (self._muon if group["kind"] == "muon" else self._adamw)(group, parameters)
        return loss

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        gradients: list[Tensor] = [p.grad for p in parameters]  # type: ignore[misc]
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, p in enumerate(parameters):
            by_shape[min(p.shape, p.shape[::-1])].append(
                index
            )  # a wide matrix and its transpose go together
        for shape, indices in by_shape.items():
            at_once = max(1, BATCH_ELEMENTS // math.prod(shape))
            for first in range(0, len(indices), at_once):
                chosen = indices[first : first + at_once]
                # Nesterov: the momentum as it will be when this gradient comes once more.
                updates = [gradients[i].lerp(buffers[i], group["momentum"]) for i in chosen]
                wide = torch.stack([u if u.shape == shape else u.mT for u in updates]).to(
                    self.dtype
                )
                moved = orthogonalise(wide).unbind()
                targets = [parameters[i] for i in chosen]
                turned = [
                    m if p.shape == shape else m.mT for m, p in zip(moved, targets, strict=True)
                ]
                steps = [-group["lr"] * math.sqrt(p.shape[0] / p.shape[1]) for p in targets]
                torch._foreach_add_(
                    targets, torch._foreach_mul([m.to(targets[0].dtype) for m in turned], steps)
                )

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"] = (
                    torch.zeros_like(p),
                    torch.zeros_like(p),
                )
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalise(x: Tensor) -> Tensor:
    """The nearest matrices to x (N, rows, columns), rows <= columns, whose singular values are all about 1.

    A Newton-Schulz iteration in the type of x, with the coefficients of Polar Express: products of matrices only.
    """
    norm = x.float().norm(dim=(-2, -1), keepdim=True)
    x = (x.float() / (norm * SAFETY).clamp_min(1e-30)).to(x.dtype)  # a zero matrix stays zero
    last = len(POLAR_EXPRESS) - 1
    for number, (a, b, c) in enumerate(POLAR_EXPRESS):
        if number < last:
            a, b, c = a / SAFETY, b / SAFETY**3, c / SAFETY**5
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
