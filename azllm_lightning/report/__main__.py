"""azllm report, or python -m azllm_lightning.report: a page that shows a run, or several."""

from __future__ import annotations

from pathlib import Path

from azllm_lightning.cli import entrance
from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.cli.system_errors import system_reason
from azllm_lightning.config.verbs import ReportConfig


def main() -> None:
    """Command-line entry point."""
    entrance.main("report", report, ReportConfig.from_mapping)


def report(config: ReportConfig) -> Path:
    """Write the page of a run, or of several next to each other, and return its path.

    Raises ValueError if there is no such run, or if another program's file is where the page
    belongs, and OSError if it cannot be written.
    """
    use_language(config.lang)
    from azllm_lightning.report.comparison import comparison
    from azllm_lightning.report.document import is_page
    from azllm_lightning.report.page import page
    from azllm_lightning.report.record import find_run, read_record
    from azllm_lightning.runs.atomic import write_text
    from azllm_lightning.runs.own_file import own_file
    from azllm_lightning.runs.paths import REPORT

    logs = Path(config.logs_dir)
    named = [find_run(name, logs) for name in config.names]
    found = {events.folder.resolve(): events for events in named}  # one run may have two names
    records = [read_record(events.folder, events) for events in found.values()]
    if len(records) == 1:
        usual = records[0].folder / REPORT
        text = page(records[0])
    else:
        usual = logs / REPORT
        text = comparison(records)
    out = own_file(config.out or str(usual), "report", is_page)
    try:
        write_text(out, text)
    except OSError as error:
        raise OSError(
            tr(
                "{file} cannot be written ({reason}): set out=FILE",
                file=out,
                reason=system_reason(error),
            )
        ) from None
    print(tr("written to {file}", file=out))
    return out


if __name__ == "__main__":
    main()
