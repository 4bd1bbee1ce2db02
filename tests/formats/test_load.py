import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.formats.load import FORMAT, load


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


def test_needs_no_lightning(checkpoint, tmp_path):
    path = save(checkpoint, tmp_path / "model.ckpt")
    code = (
        "import sys; from azllm_lightning.formats.load import load; from azllm_lightning.inference.sampling import sample;"
        "sample(*load(sys.argv[1]), max_new_tokens=2);"
        "print([m for m in ('lightning', 'hydra', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_missing_paths_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"yoxdur\.ckpt does not exist"):
        load(tmp_path / "yoxdur.ckpt")
    with pytest.raises(ValueError, match=r"has neither checkpoints.best\.ckpt nor"):
        load(tmp_path)


def test_damaged_files_are_told(checkpoint, tmp_path):
    whole = save(checkpoint, tmp_path / "model.ckpt").read_bytes()
    garbage = torch.randint(256, (9999,), dtype=torch.uint8).numpy().tobytes()
    for content in (
        whole[: len(whole) // 2],
        whole[:-20],
        b"",
        garbage,
        b"salam",
        pickle.dumps({"a": 1}),
    ):
        path = tmp_path / "damaged.ckpt"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged\.ckpt is not a whole checkpoint"):
            load(path)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_never_run(checkpoint, tmp_path):
    path = save(checkpoint | {"callbacks": Hostile(tmp_path / "ran")}, tmp_path / "hostile.ckpt")
    with pytest.raises(ValueError, match="would run code, so it was refused"):
        load(path)
    assert not (tmp_path / "ran").exists()


def test_foreign_newer_and_unfitting_checkpoints_are_told(checkpoint, config, tmp_path):
    path = tmp_path / "model.ckpt"
    foreign = {key: value for key, value in checkpoint.items() if key != "azllm"}
    newer = checkpoint | {"azllm": checkpoint["azllm"] | {"format": FORMAT + 1}}
    unfitting = checkpoint | {"hyper_parameters": {"model": config.to_dict() | {"vocab_size": 310}}}
    for content, message in (
        (foreign, "not a checkpoint of azllm-lightning"),
        ([1, 2], "not a checkpoint of azllm-lightning"),
        (newer, f"format {FORMAT + 1}, and this version reads up to {FORMAT}"),
        (unfitting, "do not fit the sizes"),
    ):
        save(content, path)
        with pytest.raises(ValueError, match=message):
            load(path)
