"""python -m azllm_lightning.plan: what to train in a given time, and what to expect."""

from __future__ import annotations

from pathlib import Path

from azllm_lightning.cli import entrance
from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.config.verbs import PlanConfig


def main() -> None:
    """Command-line entry point."""
    entrance.main("plan", plan, PlanConfig.from_mapping)


def plan(config: PlanConfig) -> None:
    """Print a plan, and write its figures to the file `out`.

    Raises ValueError if the text or the check.json cannot be read, and OSError if `out` cannot be
    written.
    """
    use_language(config.lang)
    # Imported here, so that --help does not load torch and Lightning.
    from azllm_lightning.machine.plan_table import plan_table
    from azllm_lightning.machine.planner import make_plan
    from azllm_lightning.runs.atomic import write_json

    if config.out is not None:
        folder = Path(config.out).expanduser().absolute().parent
        if not folder.is_dir():  # before a minute of work
            raise ValueError(
                tr("out={path}: there is no folder {folder}", path=config.out, folder=folder)
            )
    findings = make_plan(config)
    print(plan_table(findings))
    if config.out is not None:
        write_json(Path(config.out).expanduser(), findings)


if __name__ == "__main__":
    main()
