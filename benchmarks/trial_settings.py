"""The settings of a trial, and their values where a trial names no other: those of the package."""

from __future__ import annotations

from typing import Any

from azllm_lightning.training.schedule import POWER

Settings = dict[str, Any]

DEFAULTS: Settings = {
    "name": None,
    "kind": "ours",  # or peer
    "data": "full",  # folder of shards within data_root
    "data_root": ".",
    "device": "cuda",
    "graphs": False,  # steps are CUDA graphs where they can be
    "precision": "tf32",  # fp32, or bf16 (autocast)
    "seed": 1234,
    "block": 256,
    "batch": 16,  # windows per step; the unit of `steps` and `warmup`, also if the batch grows
    "steps": 100,
    "val_windows": 256,  # None: all
    "val_every": None,  # steps; None: at the end only
    "replace": 0.0,  # share of the input tokens that are any others
    "replace_end": None,  # that share at the end, which it approaches linearly; None: replace
    "keep_losses": False,  # all training losses in the result
    # Sizes
    "layers": 4,
    "heads": None,  # None: 2 of ours, 4 of the peer
    "kv_heads": None,
    "width": 256,
    "ffn": None,
    "dropout": 0.0,
    "tied": False,
    "rope_theta": 10_000.0,
    "norm_eps": 1e-6,
    # Initial weights
    "embeddings": "neighbors",  # random
    "counted": "text",  # the text of `data` for the neighbors; windows: those of the trial alone
    "neighbor_scale": None,  # None: the package's
    "attention": "induction",  # random
    "table_std": 0.02,
    "head_std": 0.02,
    "hidden_std": 0.02,
    "out_std": 0.0,  # o_proj and down_proj
    "final_gain": 1.0,  # of the last norm: the scale of the logits
    "branch_gain": 1.0,  # of the other norms of the residual stream
    "unigram": 0.0,  # an untied head starts at this share of the log frequencies of its text
    # Optimizer
    "lr": 0.01,
    "attn_lr": None,  # of attention's matrices, None: lr
    "weight_decay": 0.1,
    "momentum": 0.9,
    "momentum_start": None,  # rises linearly to `momentum` ...
    "momentum_rise": 0.0,  # ... within this share of the steps
    "momentum_end": None,  # falls linearly from `momentum` to this ...
    "momentum_fall": 0.0,  # ... within this last share of the steps
    "nesterov": True,
    "ns_steps": 5,
    "normuon": None,  # beta of the rows' second moment
    "row_floor": None,  # smallest update / weight per row
    "soap": None,  # beta of SOAP's averages
    "soap_every": 5,
    "soap_side": 256,  # sides longer than this keep their basis
    "adam_lr": 0.03,
    "adam_weight_decay": 0.0,
    "beta1": 0.5,
    "beta2": 0.98,
    "eps": 1e-8,
    "head_eps": 1e-5,
    "affix_rate": 0.5,  # 0: tokens share nothing by their spelling
    "table_rule": "adam",  # row: one second moment per row; muon
    "head_rule": None,  # head_*: of an untied head; None: as of the tables
    "head_lr": 0.02,
    "head_decay": None,
    "head_beta1": None,
    "head_beta2": None,
    "norm_lr": None,
    "norm_beta1": None,
    "norm_beta2": None,
    "last_norm_lr": None,
    "cautious": "",  # cautious decay of: muon, tables, all
    "decay_schedule": "lr",  # decay x lr; square: decay also falls with lr; constant
    "clip": 1.0,
    # Schedule
    "schedule": "power",  # linear, cosine, sqrt, constant
    "power": POWER,  # of the schedule of that name: (1 - progress) ** power
    "warmup": None,  # steps; None: a twentieth, at least 10
    "decay_ratio": 1.0,
    "min_lr_ratio": 0.0,
    "batch_plan": None,  # [[share of the tokens, windows per step], ...]
    "lr_by_batch": 0.0,  # lr x (windows / batch) ** this, with a batch_plan
    "length_plan": None,  # [[share of the tokens, length], ...]: windows cut into pieces
    "document_start": False,  # a window starts at a document's start within half a window
    # Loss
    "z_loss": 0.0,
    "second_token": 0.0,  # weight of the loss on the token after the next, falling to 0 ...
    "second_until": 1.0,  # ... at this share of the tokens
    "keep_weights": None,  # folder for NAME.pt, where students find their teachers
    "teachers": [],  # ended trials: a student learns the mean of their predictions, too ...
    "teacher_share": 0.5,  # ... which is this share of its target
    "teacher_temperature": 1.0,  # their logits are divided by it
    "one_teacher": False,  # each text is read by one of them only, which its tokens decide
    # Averages of the weights, validated too
    "branches": 1,  # of the last fifth of the steps, as schedule.branches; `steps` counts all
    "ema": [],  # half-lives as shares of the steps
    "ema_mix": [],  # shares of the average mixed with the last weights, for each half-life
    "tail": [],  # means of the last share of the steps
    "look_ahead": 0.0,  # EMA-Nesterov: the gradient is taken this many average steps ahead
    "look_ahead_beta": 0.95,
    "look_ahead_from": 0.1,
    "look_ahead_until": 0.7,
}
