"""python -m azllm_lightning.evaluate: how well a model predicts text, or knows grammar."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azllm_lightning.cli import entrance
from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.strict import from_mapping


@dataclass(frozen=True)
class EvaluateConfig:
    """The settings of conf/evaluate.yaml, commented there."""

    ckpt_path: str
    run_name: str | None
    logs_dir: str
    hf: str | None
    pairs: bool
    stride: int | None
    block_size: int | None
    out: str | None
    data: dict[str, Any]
    lang: str | None = None


def main() -> None:
    """The console entrance."""
    entrance.main("evaluate", evaluate)


def evaluate(config: dict[str, Any], overrides: list[str] | None = None) -> dict[str, Any]:
    """Print a table of figures, write them as JSON, and return them.

    Raises ValueError if the model or the text is not found or a setting is out of range, and
    OSError if the JSON cannot be written.
    """
    settings = from_mapping(EvaluateConfig, config, "")
    use_language(settings.lang)
    import torch

    from azllm_lightning.formats.load import load
    from azllm_lightning.inference import pair_scores, text_scores
    from azllm_lightning.inference.scoring import gpt_scorer, hf_scorer
    from azllm_lightning.runs.folder import find_checkpoint, write_json

    data = from_mapping(DataConfig, settings.data, "data")
    has_text = data.path is not None or data.dir is not None
    if settings.pairs and has_text:
        raise ValueError(
            tr("pairs=true scores its own sentences: leave out data.path and data.dir")
        )
    checkpoint = None
    if settings.hf is None or not (settings.pairs or has_text):
        checkpoint = find_checkpoint(settings.ckpt_path, settings.run_name, Path(settings.logs_dir))
    out = _json_file(settings, checkpoint)
    text = None if settings.pairs else text_scores.text_to_score(data, checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if settings.hf is not None:
        scorer = hf_scorer(settings.hf, device, settings.block_size)
    else:
        assert checkpoint is not None
        scorer = gpt_scorer(*load(checkpoint, device), settings.block_size)
    model = settings.hf or str(checkpoint)
    print(f"{tr('model'):<12}{model}", file=sys.stderr)
    results: dict[str, Any] = {"model": model, "start_token": bool(scorer.start)}
    if text is None:
        results |= pair_scores.pair_results(scorer, settings.stride)
        print(pair_scores.pair_report(scorer, results))
    else:
        print(f"{tr('text'):<12}{text.origin}", file=sys.stderr)
        scores = text_scores.score_by_source(scorer, text, settings.stride)
        results["text"] = text.origin
        results |= text_scores.text_results(scorer, scores, settings.stride)
        print(text_scores.text_report(scorer, results))
    write_json(out, results)
    print(f"{tr('written to'):<12}{out}", file=sys.stderr)
    return results


def _json_file(settings: EvaluateConfig, checkpoint: Path | None) -> Path:
    """Where the figures go: out, else the run's folder, else next to the checkpoint or here."""
    name = "pairs.json" if settings.pairs else "evaluation.json"
    if settings.out is not None:
        out = Path(settings.out)
    elif settings.hf is not None or checkpoint is None:
        out = Path(name)
    else:
        folder = checkpoint.absolute().parent
        out = (folder.parent if folder.name == "checkpoints" else folder) / name
    if not out.absolute().parent.is_dir() or out.is_dir():
        raise ValueError(
            tr("out={out} cannot be written: name a file in an existing folder", out=out)
        )
    return out


if __name__ == "__main__":
    main()
