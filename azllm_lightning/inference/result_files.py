"""Where `evaluate` writes its results, checked before the work."""

from __future__ import annotations

import json
import re
import tempfile
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.verbs import MEASURES, EvaluateConfig
from azllm_lightning.data.folders import special_kind
from azllm_lightning.formats.suite_card import is_suite_page

ENDINGS = frozenset(".txt .jsonl .json .csv .tsv .parquet .gz .zst .bz2 .xz".split())
"""Endings that the name of a text loses; any other dot is a part of the name."""


def result_file(config: EvaluateConfig, checkpoint: Path | None) -> Path:
    """The JSON file for the results, in a folder that can be written.

    It is `out`, else a file in the run's folder, else next to the checkpoint, or in the current
    folder for a transformers model. Results on the model's own validation split are in
    evaluation.json (second_half.json, suite.json), those on another text in evaluation-NAME.json,
    minimal pairs in pairs.json, those of others in pairs-NAME.json, samples in samples.json. Each
    text has its own file: where NAME is that of another text, a digest is added to it.

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
        if _has_another_text(out, config):
            out = out.with_stem(f"{out.stem}-{_digest(config)}")
    _check_writable(out)
    _check_earlier(out)
    if config.suite:
        _check_page(out)
    return out


def _file_name(config: EvaluateConfig) -> str:
    kind = next((name for name in MEASURES if getattr(config, name)), "evaluation")
    given = _texts(config)
    if not given or kind == "samples":
        return f"{kind}.json"
    name = PurePosixPath(given[0].replace("\\", "/")).name
    while PurePosixPath(name).suffix in ENDINGS:
        name = PurePosixPath(name).stem
    name = re.sub(r"[^\w-]+", "_", name).strip("_") or "text"
    return f"{kind}-{name}.json"


def _check_page(out: Path) -> None:
    """Raise ValueError if the page next to the JSON of a suite would replace another file."""
    page = out.with_suffix(".md")
    if page == out or page.is_dir() or (page.exists() and not is_suite_page(page)):
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
            reason = error.strerror or error
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


def _digest(config: EvaluateConfig) -> str:
    places = [text if "://" in text else str(Path(text).absolute()) for text in _texts(config)]
    text = "\n".join(places).encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=4).hexdigest()


def _has_another_text(out: Path, config: EvaluateConfig) -> bool:
    """Whether `out` has earlier results, of another text than that of `config`."""
    is_list = isinstance(config.pairs, str)
    text = ", ".join(_texts(config) if is_list else config.data.paths)
    if not text or not out.is_file():
        return False
    scored = _read(out).get("pairs" if is_list else "text")
    if isinstance(scored, dict):  # of a suite
        scored = scored.get("text")
    return scored not in (None, text)


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
