from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.formats.load import FORMAT, load, read_checkpoint, stored_config


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["Dağın başında qar var."] * 3, vocab_size=280)


@pytest.fixture
def checkpoint(config, model, tokenizer):
    return {
        "state_dict": {f"net.{name}": tensor for name, tensor in model.state_dict().items()}
        | {"seen": torch.ones(1)},
        "hyper_parameters": {"model": config.to_dict()},
        "azllm": {"format": FORMAT, "tokenizer": tokenizer.to_json(), "config": "seed: 1\n"},
    }


def save(content, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def test_a_checkpoint_gives_model_and_tokenizer(checkpoint, config, model, tokenizer, tmp_path):
    path = save(checkpoint, tmp_path / "köçürülmüş şəkil.ckpt")
    found, found_tokenizer = load(path)
    path.unlink()
    ids = torch.randint(300, (1, 32))
    assert torch.equal(found(ids), model(ids))
    assert found.config == config
    assert not found.training
    assert found_tokenizer.encode("Qar başında") == tokenizer.encode("Qar başında")


def test_a_run_folder_gives_its_best_else_its_newest(checkpoint, tmp_path):
    def loaded():
        return load(str(tmp_path))[0].lm_head.weight[0, 0].item()

    for name, value in (
        ("step_00000900", 1.0),
        ("step_00010000", 2.0),
        ("step_00000900-v1", 4.0),
        ("best", 3.0),
    ):
        weights = checkpoint["state_dict"] | {"net.lm_head.weight": torch.full((300, 64), value)}
        save(checkpoint | {"state_dict": weights}, tmp_path / "checkpoints" / f"{name}.ckpt")
    assert loaded() == 3
    (tmp_path / "checkpoints" / "best.ckpt").unlink()
    assert loaded() == 2


def test_missing_paths_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"yoxdur\.ckpt does not exist"):
        load(tmp_path / "yoxdur.ckpt")
    with pytest.raises(ValueError, match=r"has neither checkpoints.best\.ckpt nor"):
        load(tmp_path)


def test_damaged_files_are_refused(checkpoint, tmp_path):
    complete = save(checkpoint, tmp_path / "model.ckpt").read_bytes()
    garbage = torch.randint(256, (9999,), dtype=torch.uint8).numpy().tobytes()
    for content in (
        complete[: len(complete) // 2],
        complete[:-20],
        b"",
        garbage,
        b"salam",
        pickle.dumps({"a": 1}),
    ):
        path = tmp_path / "damaged.ckpt"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged\.ckpt is not a complete checkpoint"):
            load(path)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_never_run(checkpoint, tmp_path):
    path = save(checkpoint | {"callbacks": Hostile(tmp_path / "ran")}, tmp_path / "hostile.ckpt")
    with pytest.raises(ValueError, match=r"hostile\.ckpt was refused: .* would run code"):
        load(path)
    assert not (tmp_path / "ran").exists()


def test_foreign_newer_and_mismatched_checkpoints_are_refused(checkpoint, config, tmp_path):
    path = tmp_path / "model.ckpt"
    foreign = {key: value for key, value in checkpoint.items() if key != "azllm"}
    newer = checkpoint | {"azllm": checkpoint["azllm"] | {"format": FORMAT + 1}}
    mismatched = checkpoint | {
        "hyper_parameters": {"model": config.to_dict() | {"vocab_size": 310}}
    }
    for content, message in (
        (foreign, "not a checkpoint of azllm-lightning"),
        ([1, 2], "not a checkpoint of azllm-lightning"),
        (newer, f"format {FORMAT + 1}, and this version reads formats up to {FORMAT}"),
        (mismatched, "do not match the model's stored sizes"),
    ):
        save(content, path)
        with pytest.raises(ValueError, match=message):
            load(path)


def test_the_config_of_a_checkpoint(checkpoint, tmp_path):
    assert stored_config(read_checkpoint(save(checkpoint, tmp_path / "a.ckpt"))) == {"seed": 1}
    assert stored_config({"azllm": {"config": ""}}) == {}, "a plain Trainer stores none"
