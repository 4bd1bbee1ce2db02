from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from azllm_lightning import cli, load
from azllm_lightning.cli.entrance import compose
from azllm_lightning.export import export
from azllm_lightning.generate import generate

TrainTiny = Callable[..., Path]
Exported = Callable[..., Path]

FILES = {
    "hf": {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    },
    "gguf": {"model-f16.gguf", "Modelfile"},
    "pt": {"best_model.pt", "tokenizer.json"},
}


@pytest.fixture
def exported() -> Exported:
    """exported(*overrides): what `python -m azllm_lightning.export` does, in this process; returns the folder."""

    def run(*overrides: str) -> Path:
        return export(compose(overrides, "export"))

    return run


@pytest.mark.parametrize("form", FILES)
def test_a_run_becomes_a_folder_with_a_card(
    train_tiny: TrainTiny, exported: Exported, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    run = train_tiny()
    capsys.readouterr()
    out = exported(f"format={form}", "out=mənim modelim, 1", "license=cc-by-4.0")
    assert out == Path("mənim modelim, 1")
    assert {path.name for path in out.iterdir()} == FILES[form] | {"README.md"}
    told = capsys.readouterr().out
    assert told.splitlines()[0] == f"from {run / 'checkpoints' / 'best.ckpt'}"
    assert all(str(out / name) in told for name in FILES[form])
    _, front, card = (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "cc-by-4.0"
    rows = dict(re.findall(r"^\| (.+) \| (.+) \|$", card, re.MULTILINE))
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["azllm"]
    assert rows["parameters"] == f"{load(run)[0].config.num_params():,}"
    assert rows["data"] == "tales"
    assert rows["tokens seen"] == f"{best['step'] * 4 * 32:,} in {best['step']} steps"
    assert (
        rows[f"val_loss at step {best['step']}"]
        == f"{best['metrics']['val_loss']:.4f} nats a token"
    )
    assert rows["bits per byte"] == f"{best['metrics']['val_bpb']:.4f} of held-out text"


@pytest.mark.parametrize("form", ["hf", "pt"])
def test_the_code_on_the_card_works(
    train_tiny: TrainTiny, exported: Exported, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    train_tiny()
    card = (exported(f"format={form}", "out=çıxan") / "README.md").read_text(encoding="utf-8")
    capsys.readouterr()
    exec(card.split("```python\n")[1].split("```")[0], {})
    assert "Bir gün" in capsys.readouterr().out


def test_a_card_tells_of_local_text_its_name_only(
    train_tiny: TrainTiny, exported: Exported, tmp_path: Path
) -> None:
    text = tmp_path / "gizli yer" / "kitab.txt"
    text.parent.mkdir()
    text.write_text(
        "\n\n".join(f"Uşaq {i} kitab oxuyur, sonra {i * i} alma yeyir." for i in range(400)),
        "utf-8",
    )
    train_tiny("data=text", f"data.path={text}")
    card = (exported("out=o") / "README.md").read_text(encoding="utf-8")
    assert "| data | text, kitab.txt |" in card
    assert "gizli yer" not in card


def test_an_exported_folder_is_a_checkpoint_to_all_verbs(
    train_tiny: TrainTiny, exported: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    out = exported("out=köçən", f"ckpt_path={train_tiny() / 'checkpoints' / 'step_00000008.ckpt'}")
    writes = [f"ckpt_path={out}", "prompt=Bir gün", "temperature=0", "max_new_tokens=12"]
    capsys.readouterr()
    generate(compose(writes, "generate"))
    first = capsys.readouterr().out
    again = exported("out=yenə", f"ckpt_path={out}")
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert "val_loss" not in (again / "README.md").read_text(encoding="utf-8")
    tuned = train_tiny(
        "run_name=davam", f"init_from={out}", "optimizer.lr=1e-12", "trainer.max_steps=1"
    )
    generate(compose([*writes, f"ckpt_path={tuned}"], "generate"))
    assert capsys.readouterr().out.endswith(first)


def test_a_whole_state_exports_what_best_does_not_have(
    train_tiny: TrainTiny, exported: Exported
) -> None:
    run = train_tiny()
    (run / "checkpoints" / "best.ckpt").unlink()
    weights = torch.load(
        exported("out=o", "format=pt", "ckpt_path=last") / "best_model.pt", weights_only=True
    )
    state = torch.load(run / "checkpoints" / "step_00000008.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(weights["model.embed_tokens.weight"], state["net.model.embed_tokens.weight"])


def test_wrong_inputs_end_in_one_message_and_nothing_stays(
    train_tiny: TrainTiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_tiny()
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    del checkpoint["azllm"]["tokenizer"]
    torch.save(checkpoint, "tokenizersiz.ckpt")
    Path("var").mkdir()
    Path("fayl").write_text("")
    Path("pozuq").mkdir()
    Path("pozuq", "config.json").write_text(json.dumps({"model_type": "llama"}))
    before = sorted(Path().rglob("*"))

    def told(*typed: str, run: Callable[..., Any] = export) -> str:
        monkeypatch.setattr(sys, "argv", ["export", *typed])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main("export", run)
        error = capsys.readouterr().err
        assert left.value.code == cli.EXIT_USAGE
        assert error.count("error: ") == 1
        assert "Traceback" not in error
        return error

    complaints = {
        (): "out is not given: say which folder to write, out=FOLDER",
        ("out=o", "format=onnx"): "format='onnx' is not one of hf, gguf, pt",
        ("out=o", "format=gguf", "quant=q4"): "quant='q4' is not one of f16, q8_0",
        ("out=o", "formt=hf"): "unknown setting formt; did you mean format?",
        ("out=var",): "out=var exists already",
        ("out=fayl/o",): f"out={Path('fayl/o')} cannot be written",
        ("out=o", "ckpt_path=tokenizersiz.ckpt"): "tokenizersiz.ckpt is not a checkpoint of azllm-lightning",
        ("out=o", "ckpt_path=yoxdur.ckpt"): "ckpt_path=yoxdur.ckpt: no such file",
        ("out=o", "ckpt_path=pozuq"): "pozuq holds a model of another kind (model_type='llama'",
        ("out=o", "run_name=yoxdur"): "no run with a checkpoint under",
    }  # fmt: skip
    for typed, complaint in complaints.items():
        assert complaint in told(*typed)
    assert sorted(Path().rglob("*")) == before
