"""MuonAdamW with the changes that `trials.py` tries; without any, its steps are those of the
package.

One change per setting, so that what a change gains can be measured alone. Sources: Muon and its
rates as in azllm_lightning/training/muon.py; NorMuon (arXiv:2510.05491); cautious decay
(arXiv:2510.12402); a floor of update over weight per row, SOAP before Muon and the look-ahead of
the average step (arXiv:2605.25395) from KellerJordan/modded-nanogpt, track 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from azllm_lightning.training.affixes import Affixes
from azllm_lightning.training.muon import POLAR_EXPRESS, SAFETY, batches, orthogonalize

Group = dict[str, Any]
Number = float | Tensor
"""A tensor without dimensions in a recorded step, so that each step has its own value."""


class TrialOptimizer:
    """Updates the parameters of `groups`.

    A group has `kind` ("muon", "adam"), `lr`, `decay`, and the settings of
    `trial_settings.DEFAULTS` that its kind reads.
    """

    def __init__(
        self, groups: Sequence[Group], dtype: torch.dtype, affixes: Affixes | None = None
    ) -> None:
        self.groups = groups
        self.dtype = dtype
        self.affixes = affixes
        self.steps: int | Tensor = 0  # a tensor while a step is recorded as a CUDA graph

    def tensors(self) -> list[Tensor]:
        """The state of all parameters, and the number of steps where that is a tensor."""
        states = [state for group in self.groups for state in group.get("states", [])]
        states += [state for g in self.groups for state in g.get("soap_states", {}).values()]
        counted = [self.steps] if isinstance(self.steps, Tensor) else []
        return [tensor for state in states for tensor in state.values()] + counted

    @torch.no_grad()
    def step(self, factor: Number, decay_factor: Number, momentum: float) -> None:
        """One update with the learning rates times `factor`.

        Decay takes `decay_factor` times its share of the peak rate; `momentum` is Muon's.
        """
        self.steps += 1
        for group in self.groups:
            lr = group["lr"] * factor
            shrink = group["lr"] * decay_factor * group["decay"]
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["kind"] == "muon":
                self._muon(group, parameters, lr, shrink, momentum)
            elif group["rule"] == "adam" and not group["cautious"]:
                is_usual = decay_factor is factor
                decay = group["decay"] if is_usual else shrink / lr if lr else 0.0
                self._fused_adam(group, parameters, lr, decay)
            else:
                self._adam(group, parameters, lr, shrink)
            if self.affixes and group.get("affix_rate"):
                self._affixes(group, parameters, lr)

    def _muon(
        self, group: Group, parameters: list[Tensor], lr: Number, shrink: Number, momentum: float
    ) -> None:
        states = group.setdefault("states", [{} for _ in parameters])
        gradients: list[Tensor] = [p.grad for p in parameters]  # type: ignore[misc]
        buffers = [zeros(s, "momentum", p) for s, p in zip(states, parameters, strict=True)]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        if group["nesterov"]:
            updates = [g.lerp(b, momentum) for g, b in zip(gradients, buffers, strict=True)]
        else:
            updates = list(buffers)
        if group["soap"]:
            updates = precondition(group, states, gradients, updates, int(self.steps))
        shapes = [tuple(p.shape) for p in parameters]
        directions: list[Tensor] = list(parameters)
        for batch in batches(shapes, range(len(shapes))):
            wide = torch.stack(
                [u if u.shape[0] <= u.shape[1] else u.mT for u in (updates[i] for i in batch)]
            )
            for i, d in zip(
                batch, polar(wide, self.dtype, group["ns_steps"]).unbind(), strict=True
            ):
                directions[i] = (d if d.shape == shapes[i] else d.mT).to(parameters[i].dtype)
        if group["normuon"]:
            directions = [
                normalize_rows(d, s, group["normuon"], self.steps)
                for d, s in zip(directions, states, strict=True)
            ]
        scales = [math.sqrt(rows / columns) for rows, columns in shapes]
        directions = list(torch._foreach_mul(directions, scales))
        if group["row_floor"]:
            directions = [
                floor_rows(d, p, group["row_floor"])
                for d, p in zip(directions, parameters, strict=True)
            ]
        if group["decay"]:
            shrink_weights(parameters, directions, shrink, group["cautious"])
        torch._foreach_sub_(parameters, torch._foreach_mul(directions, lr))

    def _fused_adam(self, group: Group, parameters: list[Tensor], lr: Number, decay: float) -> None:
        states = group.setdefault("states", [{} for _ in parameters])
        for state, p in zip(states, parameters, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["mean"] = torch.zeros_like(p)
                state["square"] = torch.zeros_like(p)
        adamw(
            parameters,
            [p.grad for p in parameters],  # type: ignore[misc]
            [state["mean"] for state in states],
            [state["square"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=lr,
            weight_decay=decay,
            eps=group["eps"],
            maximize=False,
        )

    def _adam(self, group: Group, parameters: list[Tensor], lr: Number, shrink: Number) -> None:
        """AdamW in several operations, with cautious decay, and other rules: "row" has one second
        moment per row, "muon" orthogonalizes the first moment.
        """
        states = group.setdefault("states", [{} for _ in parameters])
        beta1, beta2 = group["betas"]
        for state, p in zip(states, parameters, strict=True):
            g = p.grad
            assert g is not None
            by_row = group["rule"] == "row" and p.ndim == 2
            square = g.square().mean(dim=1, keepdim=True) if by_row else g.square()
            mean = zeros(state, "mean", g).lerp_(g, 1 - beta1)
            average = zeros(state, "square", square).lerp_(square, 1 - beta2)
            if group["rule"] == "muon" and p.ndim == 2:
                tall = g.lerp(mean, beta1)
                direction = polar(tall.mT[None], self.dtype, group["ns_steps"])[0].mT.to(p.dtype)
                # Entries of about 1, as those of Adam.
                direction = direction * math.sqrt(p.shape[0])
            else:
                root = (average / (1 - beta2**self.steps)).sqrt_().add_(group["eps"])
                direction = mean / (1 - beta1**self.steps) / root
            if group["decay"]:
                shrink_weights([p], [direction], shrink, group["cautious"])
            p.sub_(direction * lr)

    def _affixes(self, group: Group, parameters: list[Tensor], lr: Number) -> None:
        assert self.affixes
        beta1, beta2 = group["betas"]
        for state, p in zip(group["states"], parameters, strict=True):
            assert p.grad is not None
            g = self.affixes.collect(p.grad)
            mean = zeros(state, "affix_mean", g).lerp_(g, 1 - beta1)
            square = zeros(state, "affix_square", g).lerp_(g.square(), 1 - beta2)
            root = (square / (1 - beta2**self.steps)).sqrt_().add_(group["eps"])
            direction = mean / (1 - beta1**self.steps) / root
            p.sub_(self.affixes.spread(direction) * (lr * group["affix_rate"]))


def zeros(state: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    """The tensor `name` of `state`; zeros at the first call."""
    if name not in state:
        state[name] = torch.zeros_like(like)
    return state[name]


def shrink_weights(
    parameters: list[Tensor], directions: list[Tensor], shrink: Number, cautious: bool
) -> None:
    """Weight decay by the share `shrink`; if `cautious`, only of weights that the update shrinks
    too.
    """
    if cautious:
        for p, d in zip(parameters, directions, strict=True):
            p.sub_(p * (p * d > 0) * shrink)
    else:
        torch._foreach_mul_(parameters, 1 - shrink)


def polar(x: Tensor, dtype: torch.dtype, steps: int) -> Tensor:
    """`orthogonalize` with the first `steps` polynomials only."""
    if steps == len(POLAR_EXPRESS):
        return orthogonalize(x, dtype)
    x = x.float()
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) * SAFETY).clamp_min(1e-30)
    x = x.to(dtype)
    for a, b, c in POLAR_EXPRESS[:steps]:
        gram = x @ x.mT
        a, b, c = a / SAFETY, b / SAFETY**3, c / SAFETY**5
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def normalize_rows(
    direction: Tensor, state: dict[str, Tensor], beta: float, steps: int | Tensor
) -> Tensor:
    """NorMuon: each row divided by the root of its mean square over time; the norm stays."""
    square = direction.square().mean(dim=1, keepdim=True)
    average = zeros(state, "rows", square).lerp_(square, 1 - beta)
    scaled = direction / (average / (1 - beta**steps)).sqrt().clamp_min(1e-10)
    return scaled * (direction.norm() / scaled.norm().clamp_min(1e-10))


def floor_rows(direction: Tensor, weight: Tensor, floor: float) -> Tensor:
    """Rows whose update is smaller than `floor` times the weights' row are scaled up to that."""
    ratio = weight.norm(dim=1, keepdim=True) / direction.norm(dim=1, keepdim=True).clamp_min(1e-10)
    return direction * (floor * ratio).clamp_min(1.0)


def precondition(
    group: Group,
    states: list[dict[str, Tensor]],
    gradients: list[Tensor],
    updates: list[Tensor],
    steps: int,
) -> list[Tensor]:
    """The `updates` as SOAP (arXiv:2409.11321) has them: Adam's division in the eigenbasis of the
    averages of G G' and G' G; Muon orthogonalizes the result.

    group["soap"] is the beta of all averages, group["soap_every"] the steps between two updates of
    the bases, by one step of power iteration and QR. The side that is longer than
    group["soap_side"] keeps its own basis.
    """
    beta = group["soap"]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, g in enumerate(gradients):
        by_shape.setdefault(tuple(g.shape), []).append(i)
    result = list(updates)
    shared = group.setdefault("soap_states", {})
    for shape, members in by_shape.items():
        G = torch.stack([gradients[i] for i in members])
        U = torch.stack([updates[i] for i in members])
        state = shared.setdefault(shape, {})
        for side, size in enumerate(shape):
            if size > group["soap_side"]:
                continue
            product = G @ G.mT if side == 0 else G.mT @ G
            if f"average{side}" not in state:
                state[f"average{side}"] = product.clone()
                state[f"basis{side}"] = torch.linalg.eigh(product).eigenvectors
            average = state[f"average{side}"].lerp_(product, 1 - beta)
            if steps > 1 and (steps - 1) % group["soap_every"] == 0:
                state[f"basis{side}"] = torch.linalg.qr(average @ state[f"basis{side}"]).Q
        left, right = state.get("basis0"), state.get("basis1")
        turned = _turn(G, left, right)
        square = zeros(state, "square", G).lerp_(turned.square(), 1 - beta)
        root = (square / (1 - beta**steps)).sqrt()
        floor = 1e-8 * root.amax(dim=(-2, -1), keepdim=True).clamp_min(1e-20)
        U = _turn(U, left, right) / (root + floor)
        back = _turn(U, None if left is None else left.mT, None if right is None else right.mT)
        for i, u in zip(members, back.unbind(), strict=True):
            result[i] = u
    return result


def _turn(x: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    if left is not None:
        x = left.mT @ x
    return x if right is None else x @ right


def groups_of(net: nn.Module, s: dict[str, Any]) -> list[Group]:
    """The parameters of `net` in groups, with the settings `s` of a trial."""
    tables, heads, hidden, attention, norms, last = [], [], [], [], [], []
    for name, p in net.named_parameters():
        if name.endswith("lm_head.weight"):
            heads.append(p)
        elif name.endswith("embed_tokens.weight"):
            tables.append(p)
        elif p.ndim == 2:
            (attention if "self_attn" in name and s["attn_lr"] else hidden).append(p)
        else:
            (last if name.endswith("model.norm.weight") else norms).append(p)
    muon = {
        key: s[key]
        for key in (
            "nesterov",
            "ns_steps",
            "normuon",
            "row_floor",
            "soap",
            "soap_every",
            "soap_side",
        )
    }
    muon.update(kind="muon", decay=s["weight_decay"], cautious=s["cautious"] in ("muon", "all"))
    adam = {
        "kind": "adam",
        "rule": "adam",
        "betas": (s["beta1"], s["beta2"]),
        "eps": s["eps"],
        "cautious": False,
        "ns_steps": s["ns_steps"],
    }
    table = {
        **adam,
        "rule": s["table_rule"],
        "decay": s["adam_weight_decay"],
        "affix_rate": s["affix_rate"],
        "cautious": s["cautious"] in ("tables", "all"),
    }
    head = {
        **table,
        "rule": s["head_rule"] or s["table_rule"],
        "lr": s["head_lr"] or s["adam_lr"],
        "decay": s["adam_weight_decay"] if s["head_decay"] is None else s["head_decay"],
        "betas": (
            s["beta1"] if s["head_beta1"] is None else s["head_beta1"],
            s["head_beta2"] or s["beta2"],
        ),
        "eps": s["head_eps"] or s["eps"],
    }
    norm = {
        **adam,
        "decay": 0.0,
        "lr": s["norm_lr"] or s["adam_lr"],
        "betas": (
            s["beta1"] if s["norm_beta1"] is None else s["norm_beta1"],
            s["norm_beta2"] or s["beta2"],
        ),
    }
    groups = [
        {"params": hidden, "lr": s["lr"], **muon},
        {"params": attention, "lr": s["attn_lr"], **muon},
        {"params": tables, "lr": s["adam_lr"], **table},
        {"params": heads, **head},
        {"params": norms, **norm},
        {"params": last, **norm, "lr": s["last_norm_lr"] or norm["lr"]},
    ]
    return [group for group in groups if group["params"]]
