"""python -m azllm_lightning.plan: what to train in a given time, and what to expect."""

from __future__ import annotations

from azllm_lightning.cli import entrance
from azllm_lightning.cli.messages import use_language
from azllm_lightning.config.verbs import PlanConfig


def main() -> None:
    """Command-line entry point."""
    entrance.main("plan", plan, PlanConfig.from_mapping)


def plan(config: PlanConfig) -> None:
    """Print a plan, and write its figures to the file `out`.

    Raises ValueError if the text or the check.json cannot be read or `out` is a file of another
    program, and OSError if `out` cannot be written.
    """
    use_language(config.lang)
    # Imported here, so that --help does not load torch and Lightning.
    from azllm_lightning.machine.plan_table import plan_table
    from azllm_lightning.machine.planner import make_plan
    from azllm_lightning.runs.atomic import write_json
    from azllm_lightning.runs.own_file import has_keys, own_file

    out = None  # checked before a minute of work
    if config.out is not None:
        out = own_file(config.out, "plan", lambda path: has_keys(path, "format_version", "plan"))
    findings = make_plan(config)
    print(plan_table(findings))
    if out is not None:
        write_json(out, findings)


if __name__ == "__main__":
    main()
