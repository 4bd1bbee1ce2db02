from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import yaml

from azllm_lightning import load
from azllm_lightning.cli import entrance
from azllm_lightning.config.compose import compose
from azllm_lightning.config.verbs import ExportConfig
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
    """exported(*overrides): what `azllm export` does, in this process; returns the folder."""

    def run(*overrides: str) -> Path:
        return export(compose(overrides, "export"))

    return run


@pytest.mark.parametrize("form", FILES)
def test_a_run_becomes_a_folder_with_a_card(
    tiny_run: Path, exported: Exported, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    out = exported(f"format={form}", "out=mənim modelim, 1", "license=cc-by-4.0")
    assert out == Path("mənim modelim, 1")
    assert {path.name for path in out.iterdir()} == FILES[form] | {"README.md", "training.svg"}
    picture = ElementTree.parse(out / "training.svg").getroot()
    paths = picture.iterfind(".//{*}g[@class='line val']/{*}path")
    assert [path.get("d", "").count(" ") for path in paths] == [5]  # three validations
    printed = capsys.readouterr().out
    assert all(str(out / name) in printed for name in FILES[form])
    _, front, card = (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert "](training.svg)" in card
    assert yaml.safe_load(front)["license"] == "cc-by-4.0"
    assert "trained from scratch" in card
    rows = dict(re.findall(r"^\| (.+) \| (.+) \|$", card, re.MULTILINE))
    best = torch.load(tiny_run / "checkpoints" / "best.ckpt", weights_only=True)["azllm"]
    step = best["step"]
    best_path = tiny_run / "checkpoints" / "best.ckpt"
    assert printed.splitlines()[0] == f"from {best_path}, step {step}"
    assert rows["parameters"] == f"{load(tiny_run)[0].config.num_params():,}"
    assert rows["training text"] == "tales"
    assert rows["tokens seen"] == f"{step * 4 * 32:,} in {step} steps"
    val_loss = best["metrics"]["val_loss"]
    assert rows[f"val_loss at step {step}"] == f"{val_loss:.4f} nats per token"
    assert rows["bits per byte"] == f"{best['metrics']['val_bpb']:.4f} on held-out text"


@pytest.mark.parametrize("form", ["hf", "pt"])
def test_the_code_on_the_card_works(
    tiny_run: Path, exported: Exported, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    card = (exported(f"format={form}", "out=çıxan") / "README.md").read_text(encoding="utf-8")
    capsys.readouterr()
    exec(card.split("```python\n")[1].split("```")[0], {})
    assert "Bir gün" in capsys.readouterr().out


def test_an_exported_folder_is_a_checkpoint_to_all_verbs(
    tiny_run: Path,
    train_tiny: TrainTiny,
    exported: Exported,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = tiny_run / "checkpoints" / "step_00000008.ckpt"
    out = exported("out=köçən", f"ckpt_path={step}")
    writes = [f"ckpt_path={out}", "prompt=Bir gün", "temperature=0", "max_new_tokens=12"]
    capsys.readouterr()
    generate(compose(writes, "generate"))
    first = capsys.readouterr().out
    again = exported("out=yenə", f"ckpt_path={out}")
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    card = (again / "README.md").read_text(encoding="utf-8")
    assert "val_loss" not in card
    assert "from scratch" not in card  # the folder does not say
    rates = [f"optimizer.{name}=1e-12" for name in ("lr", "adam_lr", "head_lr")]
    unchanging = [*rates, "trainer.max_steps=1"]
    tuned = train_tiny("run_name=davam", f"init_from={out}", *unchanging)
    capsys.readouterr()
    generate(compose([*writes, f"ckpt_path={tuned}"], "generate"))
    assert capsys.readouterr().out == first


def test_a_full_state_can_be_exported_where_there_is_no_best(
    tiny_run: Path, exported: Exported
) -> None:
    (tiny_run / "checkpoints" / "best.ckpt").unlink()
    out = exported("out=o", "format=pt", "ckpt_path=last")
    weights = torch.load(out / "best_model.pt", weights_only=True)
    state = torch.load(tiny_run / "checkpoints" / "step_00000008.ckpt", weights_only=True)
    embedding = state["state_dict"]["net.model.embed_tokens.weight"]
    assert torch.equal(weights["model.embed_tokens.weight"], embedding)


def test_wrong_inputs_end_in_one_message_and_nothing_stays(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(tiny_run / "checkpoints" / "best.ckpt", weights_only=True)
    del checkpoint["azllm"]["tokenizer"]
    torch.save(checkpoint, "tokenizersiz.ckpt")
    Path("var").mkdir()
    Path("fayl").write_text("")
    Path("pozuq").mkdir()
    Path("pozuq", "config.json").write_text(json.dumps({"model_type": "llama"}))
    before = sorted(Path().rglob("*"))

    def error_of(*typed: str) -> str:
        monkeypatch.setattr(sys, "argv", ["export", *typed])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            entrance.main("export", export, ExportConfig.from_mapping)
        error = capsys.readouterr().err
        assert left.value.code == entrance.EXIT_USAGE
        assert error.count("error: ") == 1
        assert "Traceback" not in error
        return error

    complaints = {
        (): "out is not set: name the folder to write, out=FOLDER",
        ("out=o", "format=onnx"): "format=onnx must be one of hf, gguf, pt",
        ("out=o", "format=gguf", "quant=q4"): "quant=q4 must be one of f16, q8_0",
        ("out=var",): "out=var already exists",
        ("out=fayl/o",): "(there is a file in the place of a folder): choose another folder",
        ("out=o", "license="): "license= must be a license such as apache-2.0, or unknown",
        ("out=o", "ckpt_path=tokenizersiz.ckpt"): "is not a checkpoint of azllm-lightning",
        (
            "out=o",
            "ckpt_path=pozuq",
        ): "pozuq contains a different kind of model (model_type='llama'",
        ("out=o", "run_name=yoxdur"): "no run with a checkpoint in",
    }
    for typed, complaint in complaints.items():
        assert complaint in error_of(*typed)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
@pytest.mark.parametrize("form", FILES)
def test_exported_files_have_the_usual_modes(
    tiny_run: Path, exported: Exported, form: str, tmp_path: Path
) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    folder = exported(f"format={form}", "out=çıxan")
    modes = {path.name: path.stat().st_mode for path in folder.iterdir()}
    assert set(modes.values()) == {usual.stat().st_mode}, modes


def test_what_export_prints(
    tiny_run: Path, exported: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported("out=çıxan")
    captured = capsys.readouterr()
    assert "0.0 MB" not in captured.out
    assert re.search(r"^ +\d+(\.\d)? kB  çıxan/config\.json$".replace("/", "."), captured.out, re.M)
    code = captured.out.partition("load it:\n")[2]
    assert 'pipeline("text-generation", model="çıxan")' in code
    Path("başqa").mkdir()
    for form in FILES:
        exported(f"format={form}", f"out=başqa/{form}")
        assert f'"başqa/{form}' in capsys.readouterr().out  # to be typed here
        assert "başqa" not in Path(f"başqa/{form}/README.md").read_text(encoding="utf-8")
    assert "license=apache-2.0" in captured.err  # none was chosen
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "have not chosen a license" in card
    for number, name in enumerate(("cc-by-4.0", "openrail++", "other")):
        exported(f"out=ikinci{number}", f"license={name}")
        assert "license" not in capsys.readouterr().err
    exported("out=üçüncü", "license=Apache 2.0: x")
    assert "only identifiers in a model card, such as apache-2.0" in capsys.readouterr().err
