"""The files that verbs write with out=: never those of other programs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from azllm_lightning.report.document import document, is_page
from azllm_lightning.runs.own_file import has_keys, own_file


def is_plan(path: Path) -> bool:
    return has_keys(path, "format_version", "plan")


def test_a_new_file_and_an_earlier_one_are_accepted(tmp_path: Path) -> None:
    new = tmp_path / "plan.json"
    assert own_file(str(new), "plan", is_plan) == new
    new.write_text(json.dumps({"format_version": 1, "plan": {}}), encoding="utf-8")
    assert own_file(str(new), "plan", is_plan) == new
    page = tmp_path / "report.html"
    page.write_text(document("tales", []), encoding="utf-8")
    assert own_file(str(page), "report", is_page) == page


@pytest.mark.parametrize("content", ['{"format_version": 1}', "[1]", "mətn", ""])
def test_a_file_of_another_program_is_kept(tmp_path: Path, content: str) -> None:
    other = tmp_path / "mənim.json"
    other.write_text(content, encoding="utf-8")
    for verb, is_own in (("plan", is_plan), ("report", is_page)):
        with pytest.raises(ValueError, match=f"is not a file of {verb}"):
            own_file(str(other), verb, is_own)
    assert other.read_text(encoding="utf-8") == content


@pytest.mark.skipif(os.name != "posix", reason="has no such files")
def test_a_pipe_and_a_device_are_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/null"), tmp_path):
        with pytest.raises(ValueError, match="is not a file of plan"):
            own_file(str(path), "plan", is_plan)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        own_file(str(tmp_path / "yoxdur" / "plan.json"), "plan", is_plan)
