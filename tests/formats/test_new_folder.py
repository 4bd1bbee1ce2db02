"""Exported folders are complete or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import importlib

import pytest
import torch

from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.formats.gguf import write_gguf
from azllm_lightning.formats.huggingface import write_hf
from azllm_lightning.formats.new_folder import new_folder
from azllm_lightning.formats.state_dict import write_state_dict
from azllm_lightning.model.gpt import GPT


def test_a_folder_is_complete_or_absent(tmp_path):
    out = tmp_path / "yeni" / "qovluq"
    with new_folder(out) as folder:
        (folder / "fayl").write_text("a")
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["qovluq"]
    with pytest.raises(ValueError, match="qovluq already exists"), new_folder(out):
        pass
    assert (out / "fayl").read_text() == "a"
    for error in (KeyboardInterrupt, ValueError, OSError(28, "No space left on device")):
        with pytest.raises((KeyboardInterrupt, ValueError, OSError)):
            fail_in(tmp_path / "o", error)
    assert [path.name for path in tmp_path.iterdir()] == ["yeni"]


def fail_in(out, error):
    with new_folder(out) as folder:
        (folder / "fayl").write_text("a")
        raise error


def test_room_is_advised_only_where_there_is_none(tmp_path):
    (tmp_path / "fayl").touch()
    for out in (tmp_path / "fayl" / "o", tmp_path / "fayl" / "o" / "p"):
        with (
            pytest.raises(OSError, match=r"cannot be written \(.*\): choose another") as raised,
            new_folder(out),
        ):
            pass
        assert "disk" not in str(raised.value)
        assert "File exists" not in str(raised.value)
    for code, text in ((errno.ENOSPC, "free some disk space or"), (errno.EACCES, "choose")):
        with pytest.raises(OSError, match=rf"cannot be written \(.*\): {text}"):
            fail_in(tmp_path / "o", OSError(code, "boş"))


@pytest.mark.parametrize("write", [write_hf, write_gguf, write_state_dict])
def test_a_full_disk_leaves_nothing(untied, tokenizer, tmp_path, write):
    """The system lets no file grow past 64 KiB, which is reached while weights are written."""
    resource = pytest.importorskip("resource")

    def write_where_there_is_no_room():
        with new_folder(tmp_path / "model") as folder:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
            try:
                write(untied, tokenizer, folder, *(["f16", "ad"] if write is write_gguf else []))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(
        OSError,
        match=r"out=.*model cannot be written \(.*(too large|requested).*\): free some disk",
    ):
        write_where_there_is_no_room()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(untied, tokenizer, tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match="pip install gguf"):
        write_gguf(untied, tokenizer, tmp_path, "f16", "ad")
    assert list(tmp_path.iterdir()) == []


def test_a_state_dict_is_all_that_a_pt_file_holds(untied, tokenizer, tmp_path):
    write_state_dict(untied, tokenizer, tmp_path)
    found = torch.load(tmp_path / "best_model.pt", weights_only=True)
    assert found.keys() == untied.state_dict().keys()
    other = GPT(untied.config)
    other.load_state_dict(found)
    assert torch.equal(other.lm_head.weight, untied.lm_head.weight)
    assert Tokenizer.from_file(tmp_path).fingerprint == tokenizer.fingerprint
