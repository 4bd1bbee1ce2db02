"""MuonAdamW: one optimizer that applies Muon to hidden matrices and AdamW to everything else."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.adamw import adamw

from azllm_lightning.cli.messages import tr
from azllm_lightning.training.affixes import Affixes
from azllm_lightning.training.threads import in_threads

log = logging.getLogger(__name__)

POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
"""Coefficients of the five polynomials, from table 1 of Amsel et al. 2025 (arXiv:2505.16932)."""

SAFETY = 1.01
"""Margin for rounding, as in the paper: in half precision, singular values above 1 would diverge.
"""

BATCH_ELEMENTS = 2**25
"""Maximum elements per batch of matrices: 64 MiB in half precision, which fits a GPU with 4 GB."""


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for groups of kind "muon", AdamW
    for groups of kind "adamw".

    A "muon" group holds matrices (out, in) and needs lr, weight_decay and momentum. A step moves a
    matrix by lr * sqrt(out / in) in every direction of its momentum, so that the best lr does not
    depend on the width (Bernstein and Newhouse 2024, arXiv:2409.20325). An "adamw" group needs lr,
    weight_decay, betas and eps. In both, weight decay multiplies the weights by 1 - lr *
    weight_decay. Parameters without a gradient are not changed.

    With `affixes`, an "adamw" group of token tables (vocabulary, C) may have `affix_rate`: Adam
    also finds a step for each affix, from the sum of its tokens' gradients, and all its tokens take
    that step times affix_rate.

    With a `process_group`, whose processes must have the same weights and gradients (DDP), each
    orthogonalizes its share of the matrices and sends the results to the others, as in
    microsoft/dion. The momentum is kept by all, so the state does not depend on their number.

    Raises ValueError for a group of another kind, and for a "muon" group with parameters that are
    not matrices.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        dtype: torch.dtype,
        process_group: dist.ProcessGroup | None = None,
        affixes: Affixes | None = None,
    ) -> None:
        self.affixes = affixes
        self.dtype = dtype
        """The type in which matrices are orthogonalized; the momentum has the parameter's own."""
        self.process_group = process_group
        super().__init__(groups, {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; raises ValueError as the class does."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group.get("kind") not in ("muon", "adamw"):
            message = tr(
                "a parameter group of kind {kind}; it must be 'muon' or 'adamw'",
                kind=repr(group.get("kind")),
            )
            raise ValueError(message)
        if group["kind"] == "muon" and any(p.ndim != 2 for p in group["params"]):
            raise ValueError(tr("a parameter group of kind 'muon' can only hold matrices"))
        # With this flag, torch loads the step counts onto the device of the parameters.
        group["fused"] = group["kind"] == "adamw"
        group["affixes"] = self.affixes.digest if self.affixes else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; moments of other affixes than these are dropped, and a warning says so."""
        super().load_state_dict(state_dict)
        mine = self.affixes.digest if self.affixes else None
        theirs = {group.get("affixes") for group in self.param_groups}
        if theirs == {mine}:
            return
        for values in self.state.values():
            for name in [name for name in values if name.startswith("affix_")]:
                del values[name]
        for group in self.param_groups:
            group["affixes"] = mine
        if mine and theirs != {None}:
            log.warning(
                tr(
                    "this version compares the spelling of tokens in another way than the one that "
                    "saved the state: what tokens learn together begins anew"
                )
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; returns what `closure` does."""
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

        def directions(batch: list[int]) -> Tensor:
            # Nesterov: look ahead by applying this gradient to the momentum once more.
            updates = torch._foreach_lerp(
                [gradients[i] for i in batch], [buffers[i] for i in batch], group["momentum"]
            )
            stacked = _wide(torch.stack(updates))
            if stacked.device.type != "cpu":
                return orthogonalize(stacked, self.dtype)
            parts = stacked.tensor_split(min(torch.get_num_threads(), len(stacked)))
            return torch.cat(in_threads(lambda part: orthogonalize(part, self.dtype), parts))

        shapes = [tuple(p.shape) for p in parameters]
        if self.process_group is None:
            for batch in batches(shapes, range(len(shapes))):
                _move([parameters[i] for i in batch], directions(batch), group["lr"])
            return
        rank = self.process_group.rank()
        shares = shared_out(shapes, self.process_group.size())
        mine = [directions(batch) for batch in batches(shapes, shares[rank])]
        for owner, share in enumerate(shares):
            for batch in batches(shapes, share):
                moved = [parameters[i] for i in batch]
                if owner == rank:
                    received = mine.pop(0)
                else:
                    size = (len(batch), *sorted(moved[0].shape))
                    received = torch.empty(size, dtype=self.dtype, device=moved[0].device)
                # As bytes, because not every backend sends every type.
                dist.broadcast(received.view(torch.uint8), owner, self.process_group)
                _move(moved, received, group["lr"])

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradients: list[Tensor] = [p.grad for p in parameters]  # type: ignore[misc]
        self._adam(group, parameters, parameters, gradients, "", group["weight_decay"])
        if self.affixes is None or not group.get("affix_rate"):
            return
        for p, gradient in zip(parameters, gradients, strict=True):
            collected = self.affixes.collect(gradient)
            moved = torch.zeros_like(collected)
            self._adam(group, [p], [moved], [collected], "affix_")
            p.add_(self.affixes.spread(moved), alpha=group["affix_rate"])

    def _adam(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        moved: list[Tensor],
        gradients: list[Tensor],
        prefix: str,
        weight_decay: float = 0.0,
    ) -> None:
        """A step of AdamW for the tensors `moved`, whose moments are in the state of `parameters`
        under names with this `prefix`.
        """
        for p, tensor in zip(parameters, moved, strict=True):
            state = self.state[p]
            if f"{prefix}step" not in state:
                state[f"{prefix}step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state[f"{prefix}exp_avg"] = torch.zeros_like(tensor)
                state[f"{prefix}exp_avg_sq"] = torch.zeros_like(tensor)
        states = [self.state[p] for p in parameters]
        adamw(
            moved,
            gradients,
            [state[f"{prefix}exp_avg"] for state in states],
            [state[f"{prefix}exp_avg_sq"] for state in states],
            [],
            [state[f"{prefix}step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=weight_decay,
            eps=group["eps"],
            maximize=False,
        )


def shared_out(shapes: Sequence[tuple[int, ...]], ranks: int) -> list[list[int]]:
    """The indices of `shapes` in `ranks` shares of about equal `orthogonalization_flops`.

    Depends on nothing else, so that all processes find the same shares: the largest matrix that
    is left goes to the rank with the least to do.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    flops = [orthogonalization_flops(shape) for shape in shapes]
    for index in sorted(range(len(shapes)), key=lambda i: -flops[i]):
        rank = loads.index(min(loads))
        shares[rank].append(index)
        loads[rank] += flops[index]
    return shares


def orthogonalization_flops(shape: tuple[int, ...]) -> int:
    """Floating-point operations of `orthogonalize` for one matrix: three products per round."""
    rows, columns = sorted(shape)
    return len(POLAR_EXPRESS) * (4 * rows**2 * columns + 2 * rows**3)


def batches(shapes: Sequence[tuple[int, ...]], indices: Iterable[int]) -> list[list[int]]:
    """The `indices` in batches that are orthogonalized together: of one shape, and of at most
    BATCH_ELEMENTS.
    """
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index in indices:
        by_shape[shapes[index]].append(index)
    result = []
    for shape, alike in by_shape.items():
        size = max(1, BATCH_ELEMENTS // math.prod(shape))
        result += [alike[first : first + size] for first in range(0, len(alike), size)]
    return result


def _wide(x: Tensor) -> Tensor:
    """`x` (N, rows, columns), transposed if it has more rows than columns."""
    return x if x.shape[1] <= x.shape[2] else x.mT


def _move(parameters: list[Tensor], directions: Tensor, lr: float) -> None:
    """Move the matrices `parameters`, all (m, n), along `directions`, (N, m, n) or (N, n, m)."""
    m, n = parameters[0].shape
    fitting = directions if m <= n else directions.mT
    # Contiguous, as the parameters are: otherwise each would be a kernel of its own.
    steps = fitting.contiguous().to(parameters[0].dtype).mul_(-lr * math.sqrt(m / n))
    torch._foreach_add_(parameters, list(steps.unbind()))


def orthogonalize(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrices nearest to `x` (N, rows, columns), rows <= columns, with singular values of
    about 1, as `dtype`.

    A Newton-Schulz iteration in `dtype`, with the coefficients of Polar Express; it consists of
    matrix products only. The scale of a matrix does not matter; a zero matrix stays zero.
    """
    # Divided before the cast: most entries of a gradient are too small for fp16. And by the largest
    # entry first: the squares of the others can be too small, or too large, even for fp32.
    tiny = torch.finfo(torch.float32).tiny
    x = x.float()
    x = x / torch.linalg.vector_norm(x, torch.inf, (-2, -1), keepdim=True).clamp_min(tiny)
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) * SAFETY).clamp_min(tiny)
    x = x.to(dtype)
    last = len(POLAR_EXPRESS) - 1
    scaled = [(a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in POLAR_EXPRESS[:last]]
    polynomials = [*scaled, POLAR_EXPRESS[last]]
    if x.device.type == "cpu" and dtype == torch.float32 and x.shape[2] >= 2 * x.shape[1]:
        return _by_gram_matrix(x, polynomials)
    for a, b, c in polynomials:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _by_gram_matrix(x: Tensor, polynomials: list[tuple[float, float, float]]) -> Tensor:
    """The same iteration on gram = x @ x.mT alone: a quarter less time for matrices three times as
    wide as high, such as those of an MLP.

    All factors are polynomials of the first gram, so they commute. Needs the 24 bits of fp32,
    because singular values are squared.
    """
    gram = x @ x.mT
    product: Tensor | None = None
    for number, (a, b, c) in enumerate(polynomials):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if number < len(polynomials) - 1:
            gram = factor @ (gram @ factor)
    assert product is not None
    return product @ x
