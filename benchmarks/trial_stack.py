"""One training of many models of the same sizes at once: their weights are stacked, so that a step
of all has as many kernels as a step of one.

    python benchmarks/trial_stacks.py LIST --data DATA --out RESULTS.jsonl --seconds 140

The stacked models differ in their seeds and in all settings of MEMBER; those of COMMON are the
same for all. The network, its initial distribution, Muon, AdamW, schedule and windows are those of
the package (or, with kind "peer", of gpt2.py), in bf16 with weights in fp32.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adamw import adamw

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.data.cuts import cut_offset
from azllm_lightning.data.sampler import window_order
from azllm_lightning.model.gpt import rotary_tables
from azllm_lightning.training.muon import orthogonalize

Settings = dict[str, Any]
BLOCK = 256
FUSED = 2**22  # weights from which on the fused kernel is worth a launch per member

COMMON: Settings = {
    "kind": "ours",  # or peer
    "data": "full",  # folder of shards
    "mb": None,  # read a part of the text of this size only
    "passes": None,  # instead of steps
    "steps": 72,
    "batch": 16,
    "block": BLOCK,
    "batch_plan": None,  # [[share of the tokens, windows per step], ...]
    "lr_by_batch": 0.0,  # lr x (windows / batch) ** this, with a batch_plan
    "length_plan": None,  # [[share of the tokens, length], ...]: windows cut into pieces
    "val_windows": 256,
    "validations": 1,
    "layers": 4,
    "heads": 4,
    "width": 256,
    "ffn": None,
    "tied": False,
    "rope_theta": 10_000.0,
    "nesterov": True,
    "ema": [],  # half-lives as shares of the steps
    "tail": [],  # means of the last share of the steps
    "keep": False,  # stay in memory, as teachers of the next stacks
    "teachers": None,  # name of a kept stack
    "teacher_count": None,
    "ensemble": False,  # score mean probabilities of the members
    "stop": None,  # stop when all members are this far above their lowest loss
}
MEMBER: Settings = {
    "seed": 1,
    "data_seed": None,  # None: seed
    "document_start": 0,  # a window starts at a document's start within half a window
    "dropout": 0.0,
    "replace": 0.0,
    "replace_end": None,
    "smoothing": 0.0,
    "second_token": 0.0,
    "second_until": 0.5,
    "alpha": 0.0,  # weight of the teachers' probabilities
    "temperature": 1.0,  # of the teachers
    "lr": 0.01,
    "attn_lr": None,
    "weight_decay": 0.1,
    "momentum": 0.9,
    "momentum_start": None,
    "momentum_rise": 0.3,
    "momentum_end": None,
    "momentum_fall": 0.3,
    "normuon": 0.0,
    "row_floor": 0.0,
    "cautious": 0,  # decay of the matrices, where the update shrinks the weight too
    "adam_lr": 0.03,
    "adam_weight_decay": 0.0,
    "cautious_tables": 0,
    "beta1": 0.65,
    "beta2": 0.95,
    "eps": 1e-8,
    "head_eps": None,
    "norm_eps": None,
    "head_lr": None,
    "head_decay": None,
    "head_beta1": None,
    "head_beta2": None,
    "norm_lr": None,
    "norm_beta1": None,
    "norm_beta2": None,
    "table_row": 0,  # one second moment per row
    "head_row": 0,
    "decay_schedule": "lr",  # decay x lr; constant; square
    "look_ahead": 0.0,  # EMA-Nesterov: the gradient is taken this many average steps ahead ...
    "look_ahead_beta": 0.9,
    "look_ahead_from": 0.1,
    "look_ahead_until": 0.7,
    "clip": 1.0,
    "schedule": "linear",  # cosine
    "power": 1.0,  # (1 - progress) ** power
    "min_lr_ratio": 0.0,
    "decay_ratio": 1.0,
    "warmup": None,
    "table_std": 0.02,
    "head_std": 0.02,
    "head_is_table": 0,  # the head starts as a copy of the table
    "hidden_std": 0.02,
    "out_std": 0.0,
    "final_gain": 1.0,
    "branch_gain": 1.0,
    "qk_gain": 1.0,
    "unigram": 0.0,
}


class Text:
    """The tokens of a folder of shards, whole or in part, and its validation windows."""

    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.vocab: int = manifest["vocab_size"]
        self.tokens = np.fromfile(folder / "train_00000.bin", dtype="<u2").astype(np.int64)
        self.val = np.fromfile(folder / "val_00000.bin", dtype="<u2").astype(np.int64)
        split = manifest["splits"]["train"]
        self.per_mb = split["tokens"] / split["text_bytes"] * 1e6
        self.ends = np.flatnonzero(self.tokens == int(self.tokens[-1])) + 1
        self.starts = np.concatenate([[0], self.ends[:-1]])
        self.order = np.random.default_rng(0).permutation(len(self.starts))

    def part(self, mb: float | None) -> np.ndarray:
        """The tokens of random documents of about `mb` MB, in their order."""
        if mb is None:
            return self.tokens
        lengths = (self.ends - self.starts)[self.order]
        count = int(np.searchsorted(np.cumsum(lengths), mb * self.per_mb)) + 1
        chosen = np.sort(self.order[:count])
        return np.concatenate([self.tokens[self.starts[i] : self.ends[i]] for i in chosen])

    def validation(self, count: int, block: int) -> np.ndarray:
        """Windows (count, T + 1)."""
        total = (len(self.val) - 1) // block
        chosen = np.sort(window_order(range(min(total, count)), total, 0))
        return self.val[chosen[:, None] * block + np.arange(block + 1)]


def windows(text: np.ndarray, count: int, seed: int, document_start: bool, T: int) -> np.ndarray:
    """The first `count` windows that a run reads, (count, T + 1), as int16."""
    size = (len(text) - 1) // T
    positions = np.arange(count)
    starts = window_order(positions, size, seed) * T + cut_offset(positions // size, T)
    if document_start:
        ends = np.flatnonzero(text == int(text[-1])) + 1
        nearest = ends[np.clip(np.searchsorted(ends, starts + T // 2) - 1, 0, None)]
        starts = np.where(np.abs(nearest - starts) <= T // 2, nearest, starts)
    return text[(starts[:, None] + np.arange(T + 1)) % len(text)].astype(np.int16)


class Stack:
    """K models and their optimizer."""

    def __init__(
        self,
        common: Settings,
        members: dict[str, Settings],
        text: Text,
        device: torch.device,
        teachers: Stack | None = None,
    ) -> None:
        for given, known in ((common, COMMON), *((m, MEMBER) for m in members.values())):
            if unknown := given.keys() - known.keys():
                raise ValueError(f"unknown settings {sorted(unknown)}")
        self.c = c = {**COMMON, **common}
        self.names = list(members)
        self.given = members
        self.m = [{**MEMBER, **member} for member in members.values()]
        self.K = len(self.m)
        self.device = device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.text = text
        self.teachers = teachers
        self.ours = c["kind"] == "ours"
        self.V, self.C, self.L, self.H = text.vocab, c["width"], c["layers"], c["heads"]
        part = text.part(c["mb"])
        self.T = c["block"]
        size = (len(part) - 1) // self.T
        self.steps = c["steps"] if c["passes"] is None else round(c["passes"] * size) // c["batch"]
        self.plan = self._batches()
        count = self.steps * c["batch"]
        rows = [
            windows(
                part,
                count,
                m["seed"] if m["data_seed"] is None else m["data_seed"],
                m["document_start"],
                self.T,
            )
            for m in self.m
        ]
        self.rows = torch.from_numpy(np.stack(rows)).to(device)
        self.val = torch.from_numpy(text.validation(c["val_windows"], self.T)).to(device)
        self.offset = (torch.arange(self.K, device=device) * self.V)[:, None, None]
        self.p: dict[str, Tensor] = {}
        self.group: dict[str, str] = {}
        self.generator = torch.Generator(device).manual_seed(0)
        with torch.no_grad():
            (self._make_ours if self.ours else self._make_peer)(rows)
        for p in self.p.values():
            p.requires_grad_()
        self.state = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in self.p.items()}
        self.rows_of = {n: {} for n in self.p}  # NorMuon's averages
        self.any = {k: any(m[k] for m in self.m) for k in MEMBER}
        self.now = self._tables()
        self.averages = {
            f"ema {half:g}": [torch.zeros_like(p) for p in self.p.values()] for half in c["ema"]
        }
        self.averages |= {
            f"tail {share:g}": [torch.zeros_like(p) for p in self.p.values()] for share in c["tail"]
        }
        self.weight = dict.fromkeys(self.averages, 0.0)

    # Weights

    def _normal(self, shape: tuple[int, ...], std: str | float) -> Tensor:
        """(K, *shape): the same numbers for the same seed."""
        out = torch.empty(self.K, *shape, device=self.device)
        self.draws = getattr(self, "draws", 0) + 1
        for k, m in enumerate(self.m):
            self.generator.manual_seed(1000 * m["seed"] + self.draws)
            scale = m[std] if isinstance(std, str) else std
            out[k].normal_(generator=self.generator).mul_(scale)
        return out

    def _add(self, name: str, group: str, p: Tensor) -> None:
        self.p[name] = p.contiguous()
        self.group[name] = group

    def _make_ours(self, rows: list[np.ndarray]) -> None:
        c = self.c
        config = GPTConfig(
            vocab_size=self.V,
            block_size=self.T,
            n_layer=self.L,
            n_head=self.H,
            n_embd=self.C,
            intermediate_size=c["ffn"],
            rope_theta=c["rope_theta"],
        )
        self.eps = config.norm_eps
        self.D = config.head_dim
        self.ffn = config.intermediate_size
        cos, sin = rotary_tables(config)
        self.cos, self.sin = cos.to(self.device), sin.to(self.device)
        C, L = self.C, self.L
        self._add("table", "table", self._normal((self.V, C), "table_std"))
        if not c["tied"]:
            self._add("head", "head", self._normal((self.V, C), "head_std"))
        attn = []
        mlp = []
        for _ in range(L):
            attn += [self._normal((C, C), "hidden_std") for _ in range(3)]
            attn.append(self._normal((C, C), "out_std"))
            mlp += [self._normal((self.ffn, C), "hidden_std") for _ in range(2)]
            mlp.append(self._normal((self.ffn, C), "out_std"))  # down, transposed
        self._add("attn", "muon", torch.stack(attn))
        self._add("mlp", "muon", torch.stack(mlp))
        norms = torch.ones(2 * L + 1, self.K, C, device=self.device)
        norms[:-1] *= self._vector("branch_gain")[:, None]
        norms[-1] *= self._vector("final_gain")[:, None]
        self._add("norms", "norm", norms)
        qk = torch.ones(2 * L, self.K, self.D, device=self.device)
        self._add("qk", "norm", qk * self._vector("qk_gain")[:, None])
        if any(m["second_token"] for m in self.m):
            eye = torch.eye(C, device=self.device)
            self._add("ahead", "norm", eye.expand(self.K, C, C).clone())
        for k, m in enumerate(self.m):
            if m["head_is_table"]:
                self.p["head"][k] = self.p["table"][k]
            if m["unigram"]:
                counts = np.bincount(rows[k][:256].ravel(), minlength=self.V) + 0.5
                logs = torch.from_numpy(np.log(counts / counts.sum())).float().to(self.device)
                table = self.p["table"][k]
                table[:, 0] = 2 * m["table_std"]
                root = table.square().mean(dim=1).sqrt().mean()
                scale = m["unigram"] / (2 * m["table_std"] / root) / m["final_gain"]
                self.p["head"][k][:, 0] = scale * (logs - logs.mean())

    def _make_peer(self, rows: list[np.ndarray]) -> None:
        C, L, K = self.C, self.L, self.K
        last = 0.02 / math.sqrt(2 * L)
        zeros = torch.zeros
        device = self.device
        self._add("table", "matrix", self._normal((self.V, C), 0.02))
        self._add("wpe", "matrix", self._normal((self.T, C), 0.02))
        self._add(
            "qkv", "matrix", torch.stack([self._normal((3 * C, C), 0.02) for _ in range(L)])
        )
        self._add("out", "matrix", torch.stack([self._normal((C, C), last) for _ in range(L)]))
        self._add("fc", "matrix", torch.stack([self._normal((4 * C, C), 0.02) for _ in range(L)]))
        self._add("proj", "matrix", torch.stack([self._normal((C, 4 * C), last) for _ in range(L)]))
        self._add("norms", "vector", torch.ones(2 * L + 1, K, C, device=device))
        self._add("norm_b", "vector", zeros(2 * L + 1, K, C, device=device))
        self._add("qkv_b", "vector", zeros(L, K, 3 * C, device=device))
        self._add("fc_b", "vector", zeros(L, K, 4 * C, device=device))
        self._add("out_b", "vector", zeros(2 * L, K, C, device=device))

    def _vector(self, name: str, fallback: str | None = None) -> Tensor:
        values = [m[name] if m[name] is not None else m[fallback] for m in self.m]
        return torch.tensor([float(v) for v in values], device=self.device)

    # The plan

    def _batches(self) -> list[tuple[int, int]]:
        total = self.steps * self.c["batch"]
        plan: list[tuple[int, int]] = []
        first = 0
        while first < total:
            size = min(total - first, last_of(self.c["batch_plan"], first / total, self.c["batch"]))
            plan.append((first, size))
            first += size
        return plan

    def _tables(self) -> dict[str, Tensor]:
        """What changes from step to step, each (steps, K)."""
        rows: dict[str, list[list[float]]] = {
            key: [] for key in ("factor", "decay", "momentum", "replace", "second")
        }
        for first, size in self.plan:
            place = first / self.c["batch"]
            progress = place / self.steps
            scale = (size / self.c["batch"]) ** self.c["lr_by_batch"]
            factors = [factor(m, place, self.steps, self.ours) * scale for m in self.m]
            rows["factor"].append(factors)
            powers = {"lr": 1.0, "square": 2.0, "constant": 0.0}
            rows["decay"].append(
                [f ** powers[m["decay_schedule"]] for f, m in zip(factors, self.m, strict=True)]
            )
            rows["momentum"].append([momentum(m, progress) for m in self.m])
            ends = [m["replace"] if m["replace_end"] is None else m["replace_end"] for m in self.m]
            rows["replace"].append(
                [
                    m["replace"] + (end - m["replace"]) * progress
                    for m, end in zip(self.m, ends, strict=True)
                ]
            )
            rows["second"].append(
                [m["second_token"] * max(0.0, 1 - progress / m["second_until"]) for m in self.m]
            )
        self.host = rows
        return {key: torch.tensor(value, device=self.device) for key, value in rows.items()}

    # The networks

    def _drop(self, x: Tensor, training: bool) -> Tensor:
        if not training or not self.any["dropout"]:
            return x
        p = self.dropouts.view(-1, *[1] * (x.ndim - 1))
        kept = torch.rand(x.shape, device=x.device, dtype=torch.float32) >= p
        return x * kept / (1 - p).to(x.dtype)

    def hidden(self, x: Tensor, training: bool = False) -> Tensor:
        """Token ids (K, B, T) to the input of the head, (K, B T, C), in fp32."""
        self.dropouts = self._vector("dropout")
        return (self._ours if self.ours else self._peer)(x, training)

    def _ours(self, x: Tensor, training: bool) -> Tensor:
        K, B, T = x.shape
        C, H, D, t = self.C, self.H, self.D, self.dtype
        cos, sin = self.cos[:T, None].to(t), self.sin[:T, None].to(t)
        h = F.embedding((x + self.offset).flatten(), self.p["table"].view(-1, C)).view(K, -1, C)
        h = self._drop(h, training)
        attn = self.p["attn"].unbind(0)
        mlp = self.p["mlp"].unbind(0)
        norms = self.p["norms"].unbind(0)
        qk = self.p["qk"].to(t).unbind(0)
        for i in range(self.L):
            # The gains of the norms are multiplied into the matrices that follow them.
            gain = norms[2 * i][:, None]
            wq, wk, wv = (w * gain for w in attn[4 * i : 4 * i + 3])
            a = F.rms_norm(h, (C,), eps=self.eps).to(t)
            v = torch.bmm(a, wv.to(t).mT).view(K * B, T, H, D).transpose(1, 2)
            both = []
            for w, g in ((wq, qk[2 * i]), (wk, qk[2 * i + 1])):
                z = F.rms_norm(torch.bmm(a, w.to(t).mT).view(K, B, T, H, D), (D,), eps=self.eps)
                g = g[:, None, None, None]
                z = torch.addcmul(z * (g * cos), z.roll(D // 2, -1), g.roll(D // 2, -1) * sin)
                both.append(z.view(K * B, T, H, D).transpose(1, 2))
            y = F.scaled_dot_product_attention(both[0], both[1], v, is_causal=True)
            y = y.transpose(1, 2).reshape(K, -1, C)
            h = h + self._drop(torch.bmm(y, attn[4 * i + 3].to(t).mT), training)
            gain = norms[2 * i + 1][:, None]
            gate, up = (w * gain for w in mlp[3 * i : 3 * i + 2])
            a = F.rms_norm(h, (C,), eps=self.eps).to(t)
            y = F.silu(torch.bmm(a, gate.to(t).mT)) * torch.bmm(a, up.to(t).mT)
            h = h + self._drop(torch.bmm(y, mlp[3 * i + 2].to(t)), training)
        return self._norm(h, norms[-1])

    def _norm(self, h: Tensor, gain: Tensor) -> Tensor:
        return F.rms_norm(h, (self.C,), eps=self.eps) * gain[:, None]

    def _peer(self, x: Tensor, training: bool) -> Tensor:
        K, B, T = x.shape
        C, H, t = self.C, self.H, self.dtype
        p = self.p
        rate = self.m[0]["dropout"] if training else 0.0
        h = F.embedding((x + self.offset).flatten(), p["table"].view(-1, C)).view(K, B, T, C)
        h = F.dropout(h + p["wpe"][:, None, :T], rate).view(K, -1, C)
        names = ("qkv", "out", "fc", "proj", "norms", "norm_b", "qkv_b", "fc_b", "out_b")
        w = {n: (p[n] if n.startswith("norm") else p[n].to(t)).unbind(0) for n in names}

        def norm(h: Tensor, i: int) -> Tensor:
            return F.layer_norm(h, (C,)) * w["norms"][i][:, None] + w["norm_b"][i][:, None]

        for i in range(self.L):
            a = norm(h, 2 * i).to(t)
            z = torch.baddbmm(w["qkv_b"][i][:, None], a, w["qkv"][i].mT)
            q, k, v = z.view(K * B, T, 3, H, C // H).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=rate)
            y = y.transpose(1, 2).reshape(K, -1, C)
            y = torch.baddbmm(w["out_b"][2 * i][:, None], y, w["out"][i].mT)
            h = h + F.dropout(y, rate)
            a = norm(h, 2 * i + 1).to(t)
            y = F.gelu(torch.baddbmm(w["fc_b"][i][:, None], a, w["fc"][i].mT))
            y = torch.baddbmm(w["out_b"][2 * i + 1][:, None], y, w["proj"][i].mT)
            h = h + F.dropout(y, rate)
        return norm(h, 2 * self.L)

    def head(self) -> Tensor:
        """(K, V, C)."""
        return self.p["head" if "head" in self.p else "table"]

    # One step

    def step(self, i: int) -> None:
        """One update of all members."""
        first, size = self.plan[i]
        batch = self.rows[:, first : first + size].long()
        length = last_of(self.c["length_plan"], first / self.rows.shape[1], self.T)
        x = batch[:, :, :-1].reshape(self.K, -1, length)
        y = batch[:, :, 1:].reshape(self.K, -1)
        clean = x
        if self.any["look_ahead"]:
            self._look_ahead(i)
        if self.any["replace"]:
            other = torch.randint(self.V, x.shape, device=self.device)
            drawn = torch.rand(x.shape, device=self.device)
            x = torch.where(drawn < self.now["replace"][i][:, None, None], other, x)
        hidden = self.hidden(x, training=True)
        with torch.no_grad():
            grad, extra = self._loss_gradients(hidden.detach(), y, clean, i)
        names = [name for name in self.p if name in extra or name not in ("head", "ahead")]
        wanted = [name for name in self.p if name not in ("head", "ahead")]
        got = torch.autograd.grad(hidden, [self.p[n] for n in wanted], grad)
        grads = dict(zip(wanted, got, strict=True))
        for name, g in extra.items():
            grads[name] = grads[name] + g if name in grads else g
        with torch.no_grad():
            self._update({n: grads[n] for n in names}, i)
            if self.any["look_ahead"]:
                for n, p in self.p.items():
                    beta = self._wide(self._vector("look_ahead_beta"), n)
                    self.means[n].lerp_(p - self.before[n], 1 - beta)

    @torch.no_grad()
    def _look_ahead(self, i: int) -> None:
        progress = i / self.steps
        self.before = {n: p.clone() for n, p in self.p.items()}
        if not hasattr(self, "means"):
            self.means = {n: torch.zeros_like(p) for n, p in self.p.items()}
        ahead = [
            m["look_ahead"] * (m["look_ahead_from"] <= progress < m["look_ahead_until"])
            for m in self.m
        ]
        by = torch.tensor(ahead, device=self.device) * self.now["factor"][i]
        for n, p in self.p.items():
            p.add_(self.means[n] * self._wide(by, n))

    def _loss_gradients(
        self, hidden: Tensor, y: Tensor, clean: Tensor, i: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients of the loss for the input of the head, and for the head."""
        h = hidden.to(self.dtype)
        head = self.head().to(self.dtype)
        name = "head" if "head" in self.p else "table"
        count = y.shape[1]
        logits = torch.bmm(h, head.mT)
        g = torch.softmax(logits, dim=-1)
        smoothing = self._vector("smoothing")
        alpha = self._vector("alpha")
        if self.any["smoothing"]:
            g -= (smoothing / self.V)[:, None, None].to(g.dtype)
        if self.teachers is not None:
            g -= self._teachers_say(clean) * alpha[:, None, None].to(g.dtype)
        hard = -(1 - smoothing - alpha)[:, None, None].to(g.dtype)
        g.scatter_add_(2, y[:, :, None], hard.expand(-1, count, 1))
        grad = torch.bmm(g, head).float() / count
        grad_head = torch.bmm(g.mT, h).float() / count
        extra = {name: grad_head}
        if "ahead" in self.p:
            B = clean.shape[1]
            part = h.view(self.K, B, -1, self.C)[:, :, :-1].reshape(self.K, -1, self.C)
            later = y.view(self.K, B, -1)[:, :, 1:].reshape(self.K, -1, 1)
            weight = self.p["ahead"].to(self.dtype)
            share = (self.now["second"][i] / later.shape[1])[:, None, None]
            ahead = torch.bmm(part, weight.mT)
            g = torch.softmax(torch.bmm(ahead, head.mT), dim=-1)
            g.scatter_add_(2, later, -torch.ones_like(later, dtype=g.dtype))
            back = torch.bmm(g, head)
            extra[name] = grad_head + torch.bmm(g.mT, ahead).float() * share
            extra["ahead"] = torch.bmm(back.mT, part).float() * share
            grad.view(self.K, B, -1, self.C)[:, :, :-1] += (
                torch.bmm(back, weight).float() * share
            ).view(self.K, B, -1, self.C)
        return grad, extra

    def _teachers_say(self, clean: Tensor) -> Tensor:
        """Mean probabilities of the teachers for the batch of the first member, (1, N, V)."""
        t = self.teachers
        assert t is not None
        count = self.c["teacher_count"] or t.K
        hidden = t.hidden(clean[:1].expand(t.K, -1, -1)).to(self.dtype)
        mean: Tensor | float = 0.0
        for k in range(count):
            logits = hidden[k] @ t.head()[k].to(self.dtype).mT
            mean = mean + torch.softmax(logits / self.m[0]["temperature"], -1, torch.float32)
        assert isinstance(mean, Tensor)
        return (mean / count).to(self.dtype)[None]

    # The optimizer

    def _wide(self, vector: Tensor, name: str) -> Tensor:
        """(K,) in the shape that multiplies the parameter."""
        shape = [1] * self.p[name].ndim
        shape[axis_of(name)] = self.K
        return vector.view(shape)

    def _update(self, grads: dict[str, Tensor], i: int) -> None:
        squares = torch.zeros(self.K, device=self.device)
        for name, g in grads.items():
            dims = [d for d in range(g.ndim) if d != axis_of(name)]
            squares += torch.linalg.vector_norm(g, dim=dims).square()
        scale = (self._vector("clip") / (squares.sqrt() + 1e-6)).clamp_max(1.0)
        factor = self.now["factor"][i]
        decay = self.now["decay"][i]
        for name, g in grads.items():
            g.mul_(self._wide(scale, name))
            if self.group[name] == "muon":
                self._muon(name, g, factor, decay, i)
            else:
                self._adam(name, g, factor, decay, i + 1)

    def _muon(self, name: str, g: Tensor, factor: Tensor, decay: Tensor, i: int) -> None:
        p, buffer = self.p[name], self.state[name][0]
        beta = self._wide(self.now["momentum"][i], name)
        buffer.lerp_(g, 1 - beta)
        u = g.lerp(buffer, beta) if self.c["nesterov"] else buffer
        flat = u.flatten(0, 1)
        tall = flat.shape[1] > flat.shape[2]
        d = orthogonalize(flat.mT if tall else flat, self.dtype)
        d = (d.mT if tall else d).float().view(p.shape)
        rows = self._rows(name, d)
        if self.any["normuon"]:
            d = self._normuon(name, d, rows, i + 1)
        if name == "mlp":
            ratio = math.sqrt(p.shape[2] / p.shape[3])
            scales = torch.tensor([ratio, ratio, 1 / ratio] * self.L, device=self.device)
            d = d * scales.view(-1, 1, 1, 1)
        if self.any["row_floor"]:
            d = self._floor(d, p, rows)
        lr = self._vector("attn_lr" if name == "attn" else "lr", "lr")
        shrink = self._wide(lr * decay * self._vector("weight_decay"), name)
        self._shrink(p, d, shrink, self._wide(self._vector("cautious"), name), "cautious")
        p.sub_(d * self._wide(lr * factor, name))

    def _shrink(self, p: Tensor, d: Tensor, shrink: Tensor, cautious: Tensor, name: str) -> None:
        if self.any[name]:
            allowed = torch.where(cautious > 0, (p * d > 0).float(), 1.0)
            p.sub_(p * allowed * shrink)
        else:
            p.mul_(1 - shrink)

    def _rows(self, name: str, d: Tensor) -> list[tuple[slice, int]]:
        """Slices of the stacked matrices, and the axis along a row of each."""
        if name == "attn":
            return [(slice(None), -1)]
        return [(slice(i, i + 1), -1 if i % 3 < 2 else -2) for i in range(3 * self.L)]

    def _normuon(self, name: str, d: Tensor, rows: list[Any], steps: int) -> Tensor:
        out = []
        betas = self._wide(self._vector("normuon"), name)
        for n, (part, axis) in enumerate(rows):
            x = d[part]
            square = x.square().mean(dim=axis, keepdim=True)
            state = self.rows_of[name].setdefault(n, torch.zeros_like(square))
            state.lerp_(square, 1 - betas)
            root = (state / (1 - betas**steps)).sqrt().clamp_min(1e-10)
            y = x / root
            y *= x.norm(dim=(-2, -1), keepdim=True) / y.norm(dim=(-2, -1), keepdim=True).clamp_min(
                1e-10
            )
            out.append(torch.where(betas > 0, y, x))
        return torch.cat(out)

    def _floor(self, d: Tensor, p: Tensor, rows: list[Any]) -> Tensor:
        floor = self._vector("row_floor").view(1, -1, 1, 1)
        out = []
        for part, axis in rows:
            ratio = p[part].norm(dim=axis, keepdim=True) / d[part].norm(
                dim=axis, keepdim=True
            ).clamp_min(1e-10)
            out.append(d[part] * (floor * ratio).clamp_min(1.0))
        return torch.cat(out)

    def _adam(self, name: str, g: Tensor, factor: Tensor, decay: Tensor, steps: int) -> None:
        p, (mean, square) = self.p[name], self.state[name]
        group = self.group[name]
        prefix = {"head": "head_", "norm": "norm_"}.get(group, "")
        peer = group in ("matrix", "vector")
        beta1 = self._vector(f"{prefix}beta1", "beta1")
        beta2 = self._vector(f"{prefix}beta2", "beta2")
        lr = self._vector("lr") if peer else self._vector(
            "adam_lr" if not prefix else f"{prefix}lr", "adam_lr"
        )
        if peer:
            beta1 = torch.full_like(beta1, 0.9)
        w = self._wide
        special = self.any["cautious_tables"] or (group == "table" and self.any["table_row"])
        if axis_of(name) == 0 and g.numel() >= FUSED and not special and not (
            group == "head" and self.any["head_row"]
        ):
            self._fused(name, g, steps, prefix)
            return
        mean.lerp_(g, 1 - w(beta1, name))
        sq = g.square()
        row = {"table": "table_row", "head": "head_row"}.get(group)
        if row and self.any[row]:
            flags = w(self._vector(row), name) > 0
            sq = torch.where(flags, sq.mean(dim=-1, keepdim=True), sq)
        square.lerp_(sq, 1 - w(beta2, name))
        root = (square / w(1 - beta2**steps, name)).sqrt_().add_(w(self._vector(f"{prefix}eps", "eps"), name))
        d = mean.div(root).mul_(w(1 / (1 - beta1**steps), name))
        shares = {"table": "adam_weight_decay", "head": "head_decay", "matrix": "weight_decay"}
        if group in shares:
            share = self._vector(shares[group], "adam_weight_decay")
            cautious = w(self._vector("cautious_tables"), name)
            shrink = w(lr * decay * share, name)
            self._shrink(p, d, shrink, cautious, "cautious_tables")
        p.sub_(d.mul_(w(lr * factor, name)))

    def _fused(self, name: str, g: Tensor, steps: int, prefix: str) -> None:
        """AdamW by PyTorch's fused kernel, one member after the other."""
        p, (mean, square) = self.p[name], self.state[name]
        group = self.group[name]
        peer = group in ("matrix", "vector")
        shares = {"table": "adam_weight_decay", "head": "head_decay", "matrix": "weight_decay"}
        axis = axis_of(name)
        count = torch.full((), float(steps - 1), device=self.device)
        for k, m in enumerate(self.m):
            def of(key: str, fallback: str) -> float:
                value = m[key] if m.get(key) is not None else m[fallback]
                return float(value)
            lr = of("lr", "lr") if peer else of(f"{prefix}lr" if prefix else "adam_lr", "adam_lr")
            rate = lr * self.host["factor"][steps - 1][k]
            share = of(shares[group], "adam_weight_decay") if group in shares else 0.0
            shrink = lr * self.host["decay"][steps - 1][k] * share
            adamw(
                [p.detach().select(axis, k)],
                [g.select(axis, k)],
                [mean.select(axis, k)],
                [square.select(axis, k)],
                [],
                [count.clone()],
                fused=True,
                amsgrad=False,
                beta1=0.9 if peer else of(f"{prefix}beta1", "beta1"),
                beta2=of(f"{prefix}beta2", "beta2"),
                lr=rate,
                weight_decay=shrink / rate if rate else 0.0,
                eps=of(f"{prefix}eps", "eps"),
                maximize=False,
            )

    # Averages and validation

    @torch.no_grad()
    def average(self, i: int) -> None:
        """Take the weights after step `i` into the averages."""
        first, size = self.plan[i]
        progress = (first + size) / (self.steps * self.c["batch"])
        weights = list(self.p.values())
        for name, sums in self.averages.items():
            kind, number = name.split()
            if kind == "ema":
                keep = 0.5 ** (size / self.c["batch"] / self.steps / float(number))
                torch._foreach_lerp_(sums, weights, 1 - keep)
                self.weight[name] = keep * self.weight[name] + 1 - keep
            elif progress > 1 - float(number) + 1e-9:
                torch._foreach_add_(sums, weights, alpha=size)
                self.weight[name] += size

    @torch.no_grad()
    def losses(self) -> Tensor:
        """The loss of each token of the validation windows, (K, tokens)."""
        parts = []
        head = self.head().to(self.dtype)
        for batch in self.val.split(16):
            x = batch[:, :-1].expand(self.K, -1, -1)
            y = batch[:, 1:].reshape(1, -1, 1).expand(self.K, -1, -1)
            logits = torch.bmm(self.hidden(x).to(self.dtype), head.mT)
            logs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            parts.append(-logs.gather(2, y)[:, :, 0])
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def averaged(self) -> dict[str, list[float]]:
        """val_loss of each average."""
        own = [p.clone() for p in self.p.values()]
        out = {}
        for name, sums in self.averages.items():
            if self.weight[name]:
                for p, s in zip(self.p.values(), sums, strict=True):
                    p.copy_(s / self.weight[name])
                out[name] = self.losses().double().mean(dim=1).tolist()
        for p, o in zip(self.p.values(), own, strict=True):
            p.copy_(o)
        return out


def factor(m: Settings, place: float, steps: int, ours: bool) -> float:
    """The factor on the learning rates at a step."""
    warmup = m["warmup"]
    if warmup is None:
        warmup = max(10, steps // 20) if ours else min(100, steps // 10)
    if place < warmup:
        return float((place + 1) / warmup) if place + 1 < warmup else 1.0
    flat = warmup + (1 - m["decay_ratio"]) * (steps - warmup)
    progress = max(0.0, (place - flat) / max(1e-9, steps - flat))
    if ours and m["schedule"] == "linear":
        shape = (1 - progress) ** m["power"]
    else:
        shape = 0.5 * (1 + math.cos(math.pi * progress))
    low = m["min_lr_ratio"] if ours else 0.1
    return float(low + (1 - low) * shape)


def momentum(m: Settings, progress: float) -> float:
    """Muon's momentum at a share of the steps."""
    high: float = m["momentum"]
    if m["momentum_start"] is not None and progress < m["momentum_rise"]:
        start = m["momentum_start"]
        return float(start + (high - start) * progress / m["momentum_rise"])
    if m["momentum_end"] is not None and progress > 1 - m["momentum_fall"]:
        late = 1 - (1 - progress) / m["momentum_fall"]
        return float(high + (m["momentum_end"] - high) * late)
    return high


def axis_of(name: str) -> int:
    """The axis of the members; weights of all layers are stacked along the first."""
    return 0 if name in ("table", "head", "wpe", "ahead") else 1


def last_of(plan: list[list[float]] | None, share: float, default: int) -> int:
    """The value of the last entry [share, value] of `plan` that has begun."""
    begun = [int(value) for start, value in plan or [] if share >= start]
    return begun[-1] if begun else default


def run(stack: Stack, deadline: float) -> list[Settings]:
    """Train a stack; the results of its members, and of their ensemble."""
    started = time.perf_counter()
    total = len(stack.plan)
    every = max(1, math.ceil(total / stack.c["validations"]))
    curves: dict[int, list[float]] = {}
    losses = None
    done = 0
    for i in range(total):
        stack.step(i)
        if stack.averages:
            stack.average(i)
        done = i + 1
        if done % every == 0 or done == total:
            losses = stack.losses()
            curves[done] = losses.double().mean(dim=1).tolist()
            rise = min(
                now - min(c[k] for c in curves.values()) for k, now in enumerate(curves[done])
            )
            if stack.c["stop"] is not None and rise > stack.c["stop"]:
                break
        if i % 10 == 0:
            if stack.device.type == "cuda" and i % 20 == 0:
                torch.cuda.synchronize()  # so that the clock is that of the device
            if time.time() > deadline:
                break
    averages = stack.averaged() if done == total else {}
    seconds = round(time.perf_counter() - started, 2)
    results: list[Settings] = []
    for k, name in enumerate(stack.names):
        val = {str(step): round(values[k], 4) for step, values in curves.items()}
        results.append(
            {
                "name": name if done == total or stack.c["stop"] else f"{name} (part)",
                "val_loss": list(val.values())[-1] if val else None,
                "best": min(val.values()) if val else None,
                "averages": {n: round(v[k], 4) for n, v in averages.items()},
                "val": val,
                "steps": done,
                "of": total,
                "params": sum(p.numel() for p in stack.p.values()) // stack.K,
                "seconds": seconds,
                "stack": stack.K,
                "settings": {**stack.given[name], "common": {
                    k: v for k, v in stack.c.items() if COMMON[k] != v}},
            }
        )
    if stack.c["ensemble"] and losses is not None and done == total:
        sizes = [n for n in (1, 2, 3, 4, 6, 8, 12, 16) if n <= stack.K]
        scores = {
            n: round(float(-(-losses[:n]).double().exp().mean(dim=0).log().mean()), 4)
            for n in sizes
        }
        results.append({"name": f"ensemble of {stack.names[0]}", "by_size": scores})
    return results
