"""Where `evaluate` writes its results, checked before the work."""

from __future__ import annotations

import json
import re
import tempfile
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from azllm_lightning.cli.messages import tr
from azllm_lightning.cli.system_errors import system_reason
from azllm_lightning.config.local_paths import last_part
from azllm_lightning.config.verbs import MEASURES, EvaluateConfig
from azllm_lightning.data.folders import special_kind
from azllm_lightning.formats.suite_card import is_suite_page
from azllm_lightning.inference.text_scores import prepared_folder_of

ENDINGS = frozenset(".txt .jsonl .json .csv .tsv .parquet .gz .zst .bz2 .xz".split())
"""Endings that the name of a text loses; any other dot is a part of the name."""


def result_file(config: EvaluateConfig, checkpoint: Path | None) -> Path:
    """The JSON file for the results, in a folder that can be written.

    It is `out`, else a file in the run's folder, else next to the checkpoint, or in the current
    folder for a transformers model. Results on the model's own validation split are in
    evaluation.json (second_half.json, suite.json), those on another text in evaluation-NAME.json,
    minimal pairs in pairs.json, those of others in pairs-NAME.json, samples in samples.json, those
    compared with data.dir in samples-NAME.json. Each text has its own file, and so has each model
    outside the folder of a run: where there is a file with results of another one, a digest is
    added to its name.

    Raises ValueError if it cannot be written, or if it exists and is not an earlier result.
    """
    if config.out is not None:
        out = Path(config.out)
    else:
        folder = Path()
        if config.hf is None and checkpoint is not None:
            folder = checkpoint.absolute().parent
            folder = folder.parent if folder.name == "checkpoints" else folder
        out = folder / _file_name(config)
        found = _read(out)
        if _has_another_text(found, config, checkpoint) or _has_another_model(
            found, config, checkpoint
        ):
            out = out.with_stem(f"{out.stem}-{_digest(config, checkpoint)}")
    _check_writable(out)
    _check_earlier(out)
    if config.suite:
        _check_page(out)
    return out


def _file_name(config: EvaluateConfig) -> str:
    kind = next((name for name in MEASURES if getattr(config, name)), "evaluation")
    given = _texts(config)
    if not given:
        return f"{kind}.json"
    name = last_part(given[0])
    while PurePosixPath(name).suffix in ENDINGS:
        name = PurePosixPath(name).stem
    name = re.sub(r"[^\w-]+", "_", name).strip("_") or "text"
    return f"{kind}-{name}.json"


def _check_page(out: Path) -> None:
    """Raise ValueError if the page next to the JSON of a suite would replace another file."""
    page = out.with_suffix(".md")
    if page == out or (page.exists() and not (page.is_file() and is_suite_page(page))):
        raise ValueError(
            tr(
                "suite=true would write its page over {page}: choose another name with "
                "out=FILE.json",
                page=page,
            )
        )


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
            reason = system_reason(error)
    if reason:
        raise ValueError(
            tr(
                "the results cannot be written to {out} ({reason}): choose a file with out=FILE",
                out=out,
                reason=reason,
            )
        )


def _texts(config: EvaluateConfig) -> list[str]:
    """What was given to be scored: paths, a folder of prepared data, or a list of pairs."""
    if isinstance(config.pairs, str):
        return [config.pairs]
    return config.data.paths or ([config.data.dir] if config.data.dir is not None else [])


def _prepared(config: EvaluateConfig, checkpoint: Path | None) -> Path | None:
    """The folder of prepared data that is scored, if the place of the results allows another."""
    if config.data.dir is not None:
        return Path(config.data.dir)
    if config.hf is None or not config.needs_run:
        return None
    assert checkpoint is not None
    return prepared_folder_of(checkpoint)


def _model(config: EvaluateConfig, checkpoint: Path | None) -> Path | None:
    """The model, if its results are in a folder that other models may have theirs in."""
    if config.hf is not None:
        return Path(config.hf)
    is_of_run = checkpoint is None or checkpoint.absolute().parent.name == "checkpoints"
    return None if is_of_run else checkpoint


def _digest(config: EvaluateConfig, checkpoint: Path | None) -> str:
    places = [text if "://" in text else str(Path(text).absolute()) for text in _texts(config)]
    folder, model = _prepared(config, checkpoint), _model(config, checkpoint)
    if folder is not None and not places:
        places.append(str(folder.absolute()))
    if model is not None:
        places.append(str(model.resolve()))
    text = "\n".join(places).encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=4).hexdigest()


def _has_another_text(
    found: dict[str, Any], config: EvaluateConfig, checkpoint: Path | None
) -> bool:
    """Whether the earlier results `found` are of another text than that of `config`."""
    if config.samples:
        compared, given = found.get("training_text"), config.data.dir
        return isinstance(compared, str) and given is not None and Path(compared) != Path(given)
    is_list = isinstance(config.pairs, str)
    scored = found.get("pairs" if is_list else "text")
    if isinstance(scored, dict):  # of a suite
        scored = scored.get("text")
    if not isinstance(scored, str):
        return False
    text = ", ".join(_texts(config) if is_list else config.data.paths)
    if text:
        return scored != text
    folder = _prepared(config, checkpoint)
    # Its name is followed by the split, in the language of that time.
    return folder is not None and scored.rpartition(", ")[0] != str(folder)


def _has_another_model(
    found: dict[str, Any], config: EvaluateConfig, checkpoint: Path | None
) -> bool:
    """Whether the earlier results `found` are of another model than that of `config`."""
    model = _model(config, checkpoint)
    if model is None or "model" not in found:
        return False
    measured = str(found["model"])
    if config.hf is None and "step" in found:  # ours, next to its results, from whatever folder
        return last_part(measured) != model.name
    return Path(measured).resolve() != model.resolve()


def _check_earlier(out: Path) -> None:
    """Raise ValueError if `out` is another program's file."""
    if out.exists() and not {"model", "start_token"} <= _read(out).keys():
        raise ValueError(
            tr("{out} exists and has no results of evaluate: choose a file with out=FILE", out=out)
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
