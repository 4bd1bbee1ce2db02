"""Where `evaluate` writes its results, checked before the work."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.verbs import MEASURES, EvaluateConfig
from azllm_lightning.data.folders import special_kind


def result_file(config: EvaluateConfig, checkpoint: Path | None) -> Path:
    """The JSON file for the results, in a folder that can be written.

    It is `out`, else a file in the run's folder, else next to the checkpoint, or in the current
    folder for a transformers model. Results on the model's own validation split are in
    evaluation.json (second_half.json, suite.json), those on another text in evaluation-NAME.json,
    minimal pairs in pairs.json, those of others in pairs-NAME.json, samples in samples.json.

    Raises ValueError if it cannot be written, or if it exists and is not an earlier result.
    """
    if config.out is not None:
        out = Path(config.out)
    elif config.hf is not None or checkpoint is None:
        out = Path(_file_name(config))
    else:
        folder = checkpoint.absolute().parent
        out = (folder.parent if folder.name == "checkpoints" else folder) / _file_name(config)
    _check_writable(out)
    _check_earlier(out, config)
    return out


def _file_name(config: EvaluateConfig) -> str:
    kind = next((name for name in MEASURES if getattr(config, name)), "evaluation")
    given = config.data.paths or ([config.data.dir] if config.data.dir is not None else [])
    if kind == "pairs":
        given = [config.pairs] if isinstance(config.pairs, str) else []
    if not given or kind == "samples":
        return f"{kind}.json"
    name = PurePosixPath(given[0].replace("\\", "/")).name.split(".")[0]
    name = re.sub(r"[^\w-]+", "_", name).strip("_") or "text"
    return f"{kind}-{name}.json"


def _check_writable(out: Path) -> None:
    reason: object = None
    if out.exists() and not (out.is_file() or out.is_dir()):  # reading a pipe would wait for ever
        reason = special_kind(out.stat().st_mode)
    elif not out.absolute().parent.is_dir() or out.is_dir():
        reason = tr("name a file in an existing folder")
    else:
        try:
            with tempfile.TemporaryFile(dir=out.absolute().parent):
                pass
        except OSError as error:
            reason = error.strerror or error
    if reason:
        raise ValueError(
            tr(
                "the results cannot be written to {out} ({reason}): choose a file with out=FILE",
                out=out,
                reason=reason,
            )
        )


def _check_earlier(out: Path, config: EvaluateConfig) -> None:
    """Raise ValueError if `out` is another program's file, or has results of another text."""
    if not out.exists():
        return
    found = _read(out)
    if not {"model", "start_token"} <= found.keys():
        raise ValueError(
            tr("{out} exists and has no results of evaluate: choose a file with out=FILE", out=out)
        )
    text = ", ".join(config.data.paths)
    scored = found.get("text")
    if isinstance(scored, dict):  # of a suite
        scored = scored.get("text")
    if config.out is None and text and scored != text:
        raise ValueError(
            tr(
                "{out} has the results of another text, {text}: choose a file with out=FILE",
                out=out,
                text=scored,
            )
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
