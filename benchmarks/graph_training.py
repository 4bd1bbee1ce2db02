"""One training of `trial_graphs.py`: text, model, optimizer, and the graphs of a step and of a
validation.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gpt2 import GPT2, GPT2Config
from torch import Tensor, nn
from torch.optim.adamw import adamw

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.data.sampler import window_order
from azllm_lightning.model.gpt import GPT
from azllm_lightning.model.loss import next_token_loss, token_nll
from azllm_lightning.training.muon import batches, orthogonalize

Settings = dict[str, Any]
BLOCK = 256
VAL_WINDOWS = 256
STRIDE = 159  # the offset of a pass is its number times this, modulo BLOCK, as in data/cuts.py
VOCAB = 8192

DEFAULTS: Settings = {
    "name": None,
    "kind": "ours",
    "mb": 1.0,
    "passes": 16,
    "seed": 1,
    "batch": 16,
    "layers": 4,
    "heads": 4,
    "width": 256,
    "tied": True,
    "recut": True,
    "replace": 0.0,  # share of the input tokens that are replaced at random ...
    "replace_by": "uniform",  # ... by any token, or (unigram) by one drawn from the text
    "replace_end": None,  # the share falls (or rises) linearly to this
    "dropout": 0.0,
    "drop_table": None,  # of the embeddings, None: dropout
    "drop_head": 0.0,  # of the input of the head
    "smoothing": 0.0,
    "lr": 0.01,
    "weight_decay": 0.1,
    "adam_lr": 0.03,
    "adam_weight_decay": 0.0,
    "decay_schedule": "lr",  # decay x lr; constant: decay x peak rate; square: x lr squared
    "beta1": 0.65,
    "beta2": 0.95,
    "momentum": 0.9,
    "schedule": "linear",  # cosine
    "min_lr_ratio": 0.0,
    "warmup": None,
    "ema": [],  # half-lives as shares of the steps
    "stop": 0.15,  # stop when val_loss is this far above its lowest
    "group": None,
    "save": False,
    "teachers": None,  # names of saved trials
    "alpha": 0.5,  # weight of the teachers' distribution
    "combine": None,  # add this many of the best changes of the trials whose name starts with "c "
}


# Text


class Text:
    """Training tokens by size, and the validation windows."""

    def __init__(self, folder: Path, device: torch.device, val_windows: int) -> None:
        self.device = device
        tokens = np.fromfile(folder / "train_00000.bin", dtype="<u2").astype(np.int64)
        val = np.fromfile(folder / "val_00000.bin", dtype="<u2").astype(np.int64)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        split = manifest["splits"]["train"]
        self.per_mb = split["tokens"] / split["text_bytes"] * 1e6
        ends = np.flatnonzero(tokens == int(tokens[-1])) + 1  # every document ends with this token
        starts = np.concatenate([[0], ends[:-1]])
        self.tokens, self.starts, self.ends = tokens, starts, ends
        self.order = np.random.default_rng(0).permutation(len(starts))
        self.cache: dict[float, np.ndarray] = {}
        total = (len(val) - 1) // BLOCK
        chosen = np.sort(window_order(range(min(total, val_windows)), total, 0))
        rows = val[chosen[:, None] * BLOCK + np.arange(BLOCK + 1)]
        self.val = torch.from_numpy(rows).to(device)

    def subset(self, mb: float) -> np.ndarray:
        """The tokens of about `mb` MB of text."""
        if mb not in self.cache:
            lengths = (self.ends - self.starts)[self.order]
            count = int(np.searchsorted(np.cumsum(lengths), mb * self.per_mb)) + 1
            chosen = np.sort(self.order[:count])
            pieces = [self.tokens[self.starts[i] : self.ends[i]] for i in chosen]
            self.cache[mb] = np.concatenate(pieces)
        return self.cache[mb]

    def windows(self, s: Settings) -> tuple[Tensor, int]:
        """All windows that a trial reads in turn (N, T + 1), and how many a pass has."""
        text = self.subset(s["mb"])
        size = (len(text) - 1) // BLOCK
        positions = np.arange(round(s["passes"] * size) + s["batch"])
        starts = window_order(positions, size, s["seed"]) * BLOCK
        if s["recut"]:
            starts = starts + positions // size * STRIDE % BLOCK
        rows = text[(starts[:, None] + np.arange(BLOCK + 1)) % len(text)].astype(np.int16)
        return torch.from_numpy(rows.view(np.int16)).to(self.device), size


# One training


class Training:
    """One trial; `advance` does some of its work."""

    def __init__(self, s: Settings, text: Text, work: Path, graphs: bool) -> None:
        self.s = s
        self.text = text
        self.work = work
        self.device = text.device
        self.started = time.perf_counter()
        self.stream = torch.cuda.Stream() if self.device.type == "cuda" else None
        self.step = 0
        self.result: Settings | None = None
        self.val: dict[int, float] = {}
        self.waiting: list[tuple[int, Tensor, Any]] = []
        with self._on_stream():
            self._build(graphs)

    def _on_stream(self) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()

    def _build(self, graphs: bool) -> None:
        s = self.s
        torch.default_generator.manual_seed(s["seed"])
        self.rows, size = self.text.windows(s)
        self.steps = max(1, round(s["passes"] * size) // s["batch"])
        self.every = max(1, size // s["batch"], self.steps // 16)
        self.net = self._model()
        self.ours = s["kind"] == "ours"
        named = dict(self.net.named_parameters())
        self.parameters = list(named.values())
        tables = ("embed_tokens.weight", "lm_head.weight")
        matrices = [p for p in self.parameters if p.ndim == 2]
        if self.ours:
            self.tables = [p for n, p in named.items() if n.endswith(tables)]
            self.hidden = [p for n, p in named.items() if p.ndim == 2 and not n.endswith(tables)]
        else:
            self.tables, self.hidden = matrices, []
        self.adam = [p for p in self.parameters if not any(p is h for h in self.hidden)]
        self.buffers = [torch.zeros_like(p) for p in self.hidden]
        self.first = [torch.zeros_like(p) for p in self.adam]
        self.second = [torch.zeros_like(p) for p in self.adam]
        self.counts = [torch.zeros((), device=self.device) for _ in self.adam]
        self.averages = {half: [torch.zeros_like(p) for p in self.parameters] for half in s["ema"]}
        self.weight = dict.fromkeys(s["ema"], 0.0)
        self.plan = torch.tensor([self._now(i) for i in range(self.steps)], device=self.device)
        self.now = torch.zeros(5, device=self.device)
        self.batch = torch.zeros(s["batch"], BLOCK + 1, dtype=torch.int64, device=self.device)
        self.unigram = torch.from_numpy(self.text.subset(s["mb"])).to(self.device)
        self.loss = torch.zeros((), device=self.device)
        self.nll = torch.zeros(self.text.val[:, 1:].numel(), device=self.device)
        self.teachers = [self._teacher(name) for name in s["teachers"] or []]
        self.graph = self.val_graph = None
        if graphs and self.stream:
            self._capture()

    def _model(self) -> Any:
        s = self.s
        if s["kind"] == "peer":
            sizes = (BLOCK, s["layers"], s["heads"], s["width"], s["dropout"])
            return GPT2(GPT2Config(VOCAB, *sizes)).to(self.device)
        net = GPT(
            GPTConfig(
                vocab_size=VOCAB,
                block_size=BLOCK,
                n_layer=s["layers"],
                n_head=s["heads"],
                n_embd=s["width"],
                dropout=s["dropout"],
                tie_embeddings=s["tied"],
            )
        )
        if s["drop_table"] is not None:
            net.model.dropout.p = s["drop_table"]
        return net.to(self.device)

    def _teacher(self, name: str) -> nn.Module:
        stored = torch.load(self.work / f"{name}.pt", map_location=self.device)
        s, self.s = self.s, stored["settings"]
        net = self._model()
        self.s = s
        net.load_state_dict(stored["weights"])
        return net.eval().requires_grad_(False)

    def _now(self, step: int) -> list[float]:
        s = self.s
        if s["warmup"] is not None:
            warmup = s["warmup"]
        elif self.ours:
            warmup = max(10, self.steps // 20)
        else:
            warmup = min(100, self.steps // 10)
        if step < warmup:
            factor = (step + 1) / warmup
        else:
            progress = (step - warmup) / max(1, self.steps - warmup)
            cosine = s["schedule"] == "cosine" or not self.ours
            low = 0.1 if not self.ours else s["min_lr_ratio"]
            shape = 0.5 * (1 + math.cos(math.pi * progress)) if cosine else 1 - progress
            factor = low + (1 - low) * shape
        decay = {"lr": factor, "constant": 1.0, "square": factor * factor}[s["decay_schedule"]]
        end = s["replace"] if s["replace_end"] is None else s["replace_end"]
        replace = s["replace"] + (end - s["replace"]) * step / self.steps
        if not self.ours:
            return [0.0, 0.0, s["lr"] * factor, s["lr"] * decay * s["weight_decay"], replace]
        return [
            s["lr"] * factor,
            s["lr"] * decay * s["weight_decay"],
            s["adam_lr"] * factor,
            s["adam_lr"] * decay * s["adam_weight_decay"],
            replace,
        ]

    def _capture(self) -> None:
        """Record a step and a validation; the weights and states are put back afterwards."""
        states = [*self.parameters, *self.buffers, *self.first, *self.second, *self.counts]
        states = [*states, *(p for average in self.averages.values() for p in average)]
        with torch.no_grad():
            kept = [p.clone() for p in states]
        self._load(0)
        for _ in range(2):
            self._train()
        self._validate()
        torch.cuda.current_stream().synchronize()
        for p in self.parameters:
            p.grad = None
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            self._train()
        finally:
            graph.capture_end()
        val_graph = torch.cuda.CUDAGraph()
        val_graph.capture_begin(graph.pool(), capture_error_mode="thread_local")
        try:
            self._validate()
        finally:
            val_graph.capture_end()
        self.graph = graph
        self.val_graph = val_graph
        with torch.no_grad():
            torch._foreach_copy_(states, kept)

    def _load(self, step: int) -> None:
        size = self.s["batch"]
        self.batch.copy_(self.rows[step * size : (step + 1) * size])
        self.now.copy_(self.plan[step])

    def _train(self) -> None:
        """One update with the tokens and rates that were loaded."""
        s = self.s
        x, y = self.batch[:, :-1], self.batch[:, 1:]
        clean = x
        if s["replace"] or s["replace_end"]:
            if s["replace_by"] == "unigram":
                drawn = torch.randint(len(self.unigram), x.shape, device=self.device)
                other = self.unigram[drawn]
            else:
                other = torch.randint(VOCAB, x.shape, device=self.device)
            x = torch.where(torch.rand(x.shape, device=self.device) < self.now[4], other, x)
        for p in self.parameters:
            p.grad = None
        with self._autocast():
            loss = self._loss(x, y, clean)
        loss.backward()
        gradients = [p.grad for p in self.parameters]
        torch.nn.utils.clip_grads_with_norm_(
            self.parameters, 1.0, torch.nn.utils.get_total_norm(gradients)
        )
        with torch.no_grad():
            self._update()
            self.loss.copy_(loss.detach())
            for half, average in self.averages.items():
                torch._foreach_lerp_(average, self.parameters, 1 - self._keep(half))

    def _keep(self, half: float) -> float:
        return float(0.5 ** (1 / (half * self.steps)))

    def _loss(self, x: Tensor, y: Tensor, clean: Tensor) -> Tensor:
        s = self.s
        if not self.ours:
            loss: Tensor = self.net(x, y)
            return loss
        hidden = self.net.hidden(x)
        if s["drop_head"]:
            hidden = F.dropout(hidden, s["drop_head"])
        if not self.teachers and not s["smoothing"]:
            return next_token_loss(hidden.flatten(0, 1), self.net.lm_head.weight, y.flatten())
        logits = self.net.lm_head(hidden).float().flatten(0, 1)
        loss = F.cross_entropy(logits, y.flatten(), label_smoothing=s["smoothing"])
        if self.teachers:
            with torch.no_grad():
                soft = torch.zeros_like(logits)
                for teacher in self.teachers:
                    soft += teacher(clean).float().flatten(0, 1).softmax(dim=1)
                soft /= len(self.teachers)
            cross = -(soft * logits.log_softmax(dim=1)).sum(dim=1).mean()
            loss = (1 - s["alpha"]) * loss + s["alpha"] * cross
        return loss

    def _update(self) -> None:
        s = self.s
        if self.hidden:
            gradients: list[Tensor] = [p.grad for p in self.hidden]  # type: ignore[misc]
            torch._foreach_lerp_(self.buffers, gradients, 1 - s["momentum"])
            torch._foreach_mul_(self.hidden, 1 - self.now[1])
            shapes = [tuple(p.shape) for p in self.hidden]
            for batch in batches(shapes, range(len(shapes))):
                ahead = [gradients[i].lerp(self.buffers[i], s["momentum"]) for i in batch]
                wide = torch.stack([u if u.shape[0] <= u.shape[1] else u.mT for u in ahead])
                dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
                for i, d in zip(batch, orthogonalize(wide, dtype).unbind(), strict=True):
                    rows, columns = shapes[i]
                    d = (d if d.shape == shapes[i] else d.mT).float()
                    self.hidden[i].sub_(d * (self.now[0] * math.sqrt(rows / columns)))
        torch._foreach_mul_(self.tables, 1 - self.now[3])
        adamw(
            self.adam,
            [p.grad for p in self.adam],  # type: ignore[misc]
            self.first,
            self.second,
            [],
            self.counts,
            fused=True,
            amsgrad=False,
            beta1=s["beta1"] if self.ours else 0.9,
            beta2=s["beta2"],
            lr=self.now[2],
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    @torch.no_grad()
    def _validate(self) -> None:
        self.net.eval()
        parts = []
        for batch in self.text.val.split(32):
            x, y = batch[:, :-1], batch[:, 1:]
            with self._autocast():
                if self.ours:
                    hidden = self.net.hidden(x).flatten(0, 1)
                    parts.append(token_nll(hidden, self.net.lm_head.weight, y.flatten()))
                else:
                    logits = self.net(x).float().flatten(0, 1)
                    parts.append(F.cross_entropy(logits, y.flatten(), reduction="none"))
        self.nll.copy_(torch.cat(parts))
        self.net.train()

    def _autocast(self) -> torch.autocast:
        enabled = self.device.type == "cuda"
        return torch.autocast(self.device.type, torch.bfloat16, enabled, cache_enabled=False)

    def advance(self) -> bool:
        """Enqueue a few steps, unless enough are queued; returns whether anything was done."""
        if self.result is not None:
            return False
        with self._on_stream():
            self._collect()
            if len(self.waiting) > 2:
                return False
            if self.step >= self.steps or self._is_hopeless():
                if self.waiting:
                    return False
                self._finish()
                return True
            for _ in range(8):
                self._load(self.step)
                self.graph.replay() if self.graph else self._train()
                self.step += 1
                if self.step % self.every == 0 or self.step == self.steps:
                    self._score()
                    break
            else:
                self._mark(0, self.loss)
        return True

    def _score(self) -> None:
        self.val_graph.replay() if self.val_graph else self._validate()
        self._mark(self.step, self.nll.mean())

    def _mark(self, step: int, value: Tensor) -> None:
        if self.stream is None:
            event = None
            host = value.clone()
        else:
            host = torch.empty((), pin_memory=True)
            host.copy_(value, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.waiting.append((step, host, event))

    def _collect(self) -> None:
        while self.waiting and (self.waiting[0][2] is None or self.waiting[0][2].query()):
            step, host, _ = self.waiting.pop(0)
            if step:
                self.val[step] = round(float(host), 4)
            self.last_loss = float(host)

    def _is_hopeless(self) -> bool:
        values = list(self.val.values())
        return bool(values) and not values[-1] < min(values) + self.s["stop"]

    def _finish(self) -> None:
        s = self.s
        averages = {}
        own = [p.detach().clone() for p in self.parameters]
        for half, average in self.averages.items():
            scale = 1 - self._keep(half) ** self.step
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, torch._foreach_div(average, scale))
            self.val_graph.replay() if self.val_graph else self._validate()
            averages[f"{half:g}"] = round(float(self.nll.mean()), 4)
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, own)
        if s["group"] or s["save"]:
            self.val_graph.replay() if self.val_graph else self._validate()
            np.save(self.work / f"{s['name']}.npy", self.nll.float().cpu().numpy())
        if s["save"]:
            weights = {k: v.cpu() for k, v in self.net.state_dict().items()}
            temporary = self.work / f"{s['name']}.tmp"
            torch.save({"settings": s, "weights": weights}, temporary)
            temporary.rename(self.work / f"{s['name']}.pt")
        best = min(self.val, key=lambda step: self.val[step])
        self.result = {
            "name": s["name"],
            "best": self.val[best],
            "best_pass": round(best * s["batch"] * s["passes"] / (self.steps * s["batch"]), 2),
            "last": list(self.val.values())[-1],
            "train_loss": round(float(self.loss), 4),
            "averages": averages,
            "val": self.val,
            "steps": self.step,
            "of": self.steps,
            "tokens_of_text": len(self.text.subset(s["mb"])),
            "params": sum(p.numel() for p in self.parameters),
            "seconds": round(time.perf_counter() - self.started, 2),
        }
