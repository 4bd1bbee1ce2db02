"""python -m azllm_lightning.check: what this machine can do, measured in about two minutes."""

from __future__ import annotations

import sys

from azllm_lightning.cli import entrance
from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.config.verbs import CheckConfig

EXIT_NOT_EXACT = 1
EXIT_INTERRUPTED = 130


def main() -> None:
    """Command-line entry point."""
    entrance.main("check", check, CheckConfig.from_mapping)


def check(config: CheckConfig) -> None:
    """Measure, print a table, and write the figures to the file `out`.

    What cannot be measured is a row with its reason. Exits with code 1 if a resumed run differed
    from an uninterrupted one, and with 130 after Ctrl+C. Raises ValueError or OSError if `out`
    cannot be written.
    """
    use_language(config.lang)
    print(tr("checking this machine; Ctrl+C ends it with what there is"), file=sys.stderr)
    from azllm_lightning.machine.checkup import PARTS, Checkup
    from azllm_lightning.machine.findings import table
    from azllm_lightning.runs.atomic import write_json
    from azllm_lightning.runs.own_file import has_keys, own_file

    out = own_file(config.out, "check", lambda path: has_keys(path, "format_version", *PARTS))
    findings = Checkup(config).run()
    print(table(findings, str(out)))
    write_json(out, findings)
    if findings["interrupted"]:
        sys.exit(EXIT_INTERRUPTED)
    if findings["resume"].get("is_exact") is False:
        sys.exit(EXIT_NOT_EXACT)


if __name__ == "__main__":
    main()
