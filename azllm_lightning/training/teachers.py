"""Teachers: trained models whose mean prediction a student learns, besides the next token."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from azllm_lightning.cli.messages import and_then, tr
from azllm_lightning.config.run import RunConfig
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.formats.load import tokenizer_folder
from azllm_lightning.model.distillation import student_losses
from azllm_lightning.model.gpt import GPT
from azllm_lightning.runs.model_paths import find_model, read_model, read_tokenizer


class Teachers:
    """The models at `paths`, read as by `load`, and the `share` of the target that is theirs.

    Their logits are divided by `temperature`: above 1 they are less sure of the text that they know
    by heart. Not part of the student: neither trained nor saved with it, and without dropout.

    Raises ValueError for a model that has another tokenizer than `tokenizer`, or a context shorter
    than `block_size`.
    """

    def __init__(
        self,
        paths: Sequence[str],
        share: float,
        tokenizer: Tokenizer,
        block_size: int,
        temperature: float = 1.0,
    ) -> None:
        self.share = share
        self.temperature = temperature
        self.nets = [_read(path, tokenizer, block_size) for path in paths]
        self.digests = [_digest(net) for net in self.nets]
        """Of their weights: a resume needs the same teachers, wherever they are by then."""

    def to(self, device: torch.device) -> None:
        """Move them to `device`."""
        for net in self.nets:
            net.to(device)

    def losses(self, student: GPT, inputs: Tensor, labels: Tensor) -> Tensor:
        """What `student` minimizes, and its mean NLL, (2,) in nats, of inputs and labels (B, T)."""
        with torch.no_grad():
            teachers = [
                (net.hidden(inputs).flatten(0, 1) / self.temperature, net.lm_head.weight)
                for net in self.nets
            ]
        hidden = student.hidden(inputs).flatten(0, 1)
        head = student.lm_head.weight
        return student_losses(hidden, head, labels.flatten(), teachers, self.share)


def teachers_of(
    config: RunConfig, tokenizer: Tokenizer, digests: Sequence[str] | None = None
) -> Teachers | None:
    """Those of a run whose text has this `tokenizer`; None without any.

    Raises ValueError if the first process of the run has read others, whose `digests` these are.
    """
    if not config.teachers:
        return None
    teachers = Teachers(
        config.teacher_paths,
        config.teacher_share,
        tokenizer,
        config.data.block_size,
        config.teacher_temperature,
    )
    if digests is not None and digests != teachers.digests:
        raise ValueError(
            tr(
                "the teachers on {host} have other weights than on the first machine: copy the "
                "same files there",
                host=socket.gethostname(),
            )
        )
    return teachers


def digests_of(teachers: Teachers | None) -> list[str]:
    """Their digests; empty without any."""
    return teachers.digests if teachers else []


def check_tokenizers(config: RunConfig) -> None:
    """Raise ValueError for the first teacher of `config` that cannot be read, or that has another
    tokenizer than those before it.

    It reads no weights and needs no text, which may take long to prepare.
    """
    known = None
    for path in config.teacher_paths:
        if config.ckpt_path is not None:
            _check_place(path, Path(config.logs_dir))
        theirs = read_tokenizer("teachers", path, Path(config.logs_dir))
        if known is not None and theirs.fingerprint != known.fingerprint:
            raise ValueError(
                tr(
                    "teachers: {path} and {first} were trained with different tokenizers, so they "
                    "predict different tokens",
                    path=path,
                    first=config.teacher_paths[0],
                )
            )
        known = theirs


def _check_place(path: str, logs: Path) -> None:
    """Raise ValueError if a run that resumes does not find the teacher at `path` any more."""
    try:
        find_model("teachers", path, logs)
    except ValueError as error:
        hint = tr("This run learns from it: if it has moved, give all places with teachers=[...]")
        raise ValueError(and_then(str(error), hint)) from None


def check_same_teachers(
    digests: Sequence[str], teachers: Teachers | None, paths: Sequence[str]
) -> None:
    """Raise ValueError unless `teachers`, read from `paths`, are those that a run began with, by
    their `digests`.
    """
    found = digests_of(teachers)
    if not digests and found:
        raise ValueError(
            tr("teachers: this run began without any; omit them, or start a new run with them")
        )
    if len(digests) != len(found):
        raise ValueError(
            tr(
                "teachers: this run learns from {count} models: give their places, in the order "
                "of its first start",
                count=len(digests),
            )
        )
    for path, before, now in zip(paths, digests, found, strict=True):
        if before != now:
            raise ValueError(
                tr(
                    "teachers: {path} has other weights than the teacher that this run began with "
                    "in its place: give the places in the order of the first start. The best.ckpt "
                    "of a run folder changes if that run trains on; a copy or an export does not",
                    path=path,
                )
            )


def _read(path: str, tokenizer: Tokenizer, block_size: int) -> GPT:
    net, theirs = read_model("teachers", path)
    if theirs.fingerprint != tokenizer.fingerprint:
        raise ValueError(
            tr(
                "teachers: {path} was trained with another tokenizer, so it predicts other tokens "
                "than the student; prepare the text with its tokenizer, data.tokenizer={folder}",
                path=path,
                folder=tokenizer_folder(path),
            )
        )
    if net.config.block_size < block_size:
        raise ValueError(
            tr(
                "teachers: {path} has a context of {theirs} tokens, and the student of {ours}; set "
                "data.block_size={theirs}, or less",
                path=path,
                theirs=net.config.block_size,
                ours=block_size,
            )
        )
    return net.requires_grad_(False)


def _digest(net: GPT) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()
