"""python -m azllm_lightning.evaluate: how well a model predicts text, or knows grammar."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from azllm_lightning.cli import entrance
from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.config.verbs import EvaluateConfig


def main() -> None:
    """Command-line entry point."""
    entrance.main("evaluate", evaluate, EvaluateConfig.from_mapping)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Print a table of metrics, write them as JSON, and return them.

    Raises ValueError if the model or the text is not found, a window is too long for the model, or
    the JSON cannot be written where it belongs.
    """
    use_language(config.lang)
    import torch

    from azllm_lightning.formats.load import load
    from azllm_lightning.inference import pair_scores, text_scores
    from azllm_lightning.inference.result_files import result_file
    from azllm_lightning.inference.scoring import gpt_scorer, hf_scorer
    from azllm_lightning.runs.atomic import write_json
    from azllm_lightning.runs.folder import find_checkpoint

    checkpoint = None
    if config.hf is None or not (config.pairs or config.has_text):
        checkpoint = find_checkpoint(config.ckpt_path, config.run_name, Path(config.logs_dir))
    out = result_file(config, checkpoint)
    text = None if config.pairs else text_scores.text_to_score(config.data, checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.hf is not None:
        scorer = hf_scorer(config.hf, device, config.block_size)
    else:
        assert checkpoint is not None
        scorer = gpt_scorer(*load(checkpoint, device), config.block_size)
    model = config.hf or str(checkpoint)
    print(f"{tr('model'):<12}{model}", file=sys.stderr)
    results: dict[str, Any] = {"model": model, "start_token": bool(scorer.start)}
    if text is None:
        results |= pair_scores.pair_results(scorer, config.stride)
        print(pair_scores.pair_report(scorer, results))
    else:
        print(f"{tr('text'):<12}{text.origin}", file=sys.stderr)
        scores = text_scores.score_by_source(scorer, text, config.stride)
        results["text"] = text.origin
        results |= text_scores.text_results(scorer, scores, config.stride)
        print(text_scores.text_report(scorer, results))
    write_json(out, results)
    print(f"{tr('written to'):<12}{out}", file=sys.stderr)
    return results


if __name__ == "__main__":
    main()
