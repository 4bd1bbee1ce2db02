"""python -m azllm_lightning.evaluate: how well a model predicts text, or knows grammar."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from azllm_lightning import __version__
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
    from azllm_lightning.formats.load import origin, step_of
    from azllm_lightning.inference.device import best_device
    from azllm_lightning.inference.measures import measured, open_subject, suite_page
    from azllm_lightning.inference.result_files import result_file
    from azllm_lightning.runs.atomic import write_json, write_text
    from azllm_lightning.runs.commit import commit
    from azllm_lightning.runs.folder import find_checkpoint

    checkpoint = None
    if config.hf is None or config.needs_run:
        checkpoint = find_checkpoint(config.ckpt_path, config.run_name, Path(config.logs_dir))
    out = result_file(config, checkpoint)
    device = best_device()
    subject = open_subject(config, checkpoint, device)
    ours = checkpoint if config.hf is None else None
    name = subject.name if ours is None else origin(ours)
    print(f"{tr('model'):<12}{name}", file=sys.stderr)
    results: dict[str, Any] = {"model": subject.name, "start_token": bool(subject.scorer.start)}
    if ours is not None:
        results["step"] = step_of(ours)
    if config.suite:
        results |= {"version": __version__, "commit": commit()}
    found, report = measured(config, subject)
    assert results.keys().isdisjoint(found), "a measure would overwrite what it is of"
    results |= found
    print(report)
    if config.suite:
        page = out.with_suffix(".md")
        write_text(page, suite_page(results))
        print(f"{tr('written to'):<12}{page}", file=sys.stderr)
    write_json(out, results)
    print(f"{tr('written to'):<12}{out}", file=sys.stderr)
    return results


if __name__ == "__main__":
    main()
