"""What `auto` chose is kept on the same kind of device and chosen again on another."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from training_runs import Crash, Probe, assert_same_end

from azllm_lightning.config.compose import compose
from azllm_lightning.config.trainer import AutoChoices
from azllm_lightning.data.datamodule import TokenDataModule
from azllm_lightning.session.resolve import resumed_here, settled
from azllm_lightning.training import batch, hardware

Train = Callable[..., Path]
AUTO = ["trainer.precision=auto", "trainer.compile=auto", "trainer.micro_batch_size=auto"]
FOLDER = Path("lightning_logs/tiny/version_0")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """machine(name, precision, micro): from now on, sessions are on this machine."""

    def use(name: str, precision: str, micro: int) -> None:
        def resolve_precision(setting: str, device: str) -> str:
            return precision if setting == "auto" else setting

        monkeypatch.setattr(hardware, "device_name", lambda device: name)
        monkeypatch.setattr(hardware, "resolve_precision", resolve_precision)
        monkeypatch.setattr(batch, "largest_micro_batch", lambda *_: micro)

    return use


def stored(folder: Path = FOLDER) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text("utf-8"))
    return values


def used(folder: Path = FOLDER) -> tuple[str, int]:
    trainer = stored(folder)["trainer"]
    return trainer["precision"], trainer["micro_batch_size"]


def interrupted(train_tiny: Train, probe: Probe, *overrides: str) -> None:
    probe.crash(6)
    with pytest.raises(Crash):
        train_tiny(*overrides)


def test_the_values_are_stored_with_the_fact_that_auto_chose_them(
    train_tiny: Train, machine: Callable[..., None]
) -> None:
    machine("Tesla T4", "32-true", 2)
    train_tiny("trainer.precision=auto")
    assert used() == ("32-true", 2)
    assert stored()["auto"] == {
        "device": "Tesla T4",
        "settings": ["precision", "micro_batch_size"],  # compile=false was typed
    }


@pytest.mark.thorough
def test_a_resume_on_the_same_kind_of_device_keeps_the_choice_bit_for_bit(
    train_tiny: Train, probe: Probe, machine: Callable[..., None], tmp_path: Path
) -> None:
    machine("Tesla T4", "32-true", 2)
    straight = train_tiny(*AUTO).rename(tmp_path / "straight")
    interrupted(train_tiny, probe, *AUTO, "run_name=resumed")
    machine("Tesla T4", "bf16-mixed", 4)  # what a noisy measurement might choose
    resumed = train_tiny("ckpt_path=last", "run_name=resumed")
    assert used(resumed) == ("32-true", 2)
    assert_same_end(straight, resumed)
    assert stored(resumed)["auto"]["settings"] == ["precision", "compile", "micro_batch_size"]


def test_a_resume_on_another_device_chooses_again_and_reports_the_precision(
    train_tiny: Train,
    probe: Probe,
    machine: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine("NVIDIA A100", "bf16-mixed", 4)
    interrupted(train_tiny, probe, *AUTO)
    machine("Tesla T4", "32-true", 2)
    train_tiny("ckpt_path=last")
    assert used() == ("32-true", 2)
    assert stored()["auto"]["device"] == "Tesla T4"
    assert stored()["trainer"]["compile"] is False
    line = "trainer.precision was bf16-mixed until step 4 and is 32-true from there on"
    assert capsys.readouterr().err.count(line) == 1
    summary = json.loads((FOLDER / "summary.json").read_text("utf-8"))
    assert (summary["precision"], summary["compile"]) == ("32-true", False)


def test_a_resume_with_another_number_of_threads_says_so(
    train_tiny: Train, probe: Probe, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    interrupted(train_tiny, probe)
    try:
        torch.set_num_threads(before + 1)
        train_tiny("ckpt_path=last", "trainer.max_steps=6")
        line = f"until step 4 PyTorch had {before} threads on the CPU, and has {before + 1} from"
        assert capsys.readouterr().err.count(line) == 1
        train_tiny("ckpt_path=last", "trainer.max_steps=8")
        assert "threads on the CPU" not in capsys.readouterr().err
    finally:
        torch.set_num_threads(before)


def test_a_training_starts_without_compiled_code_of_the_one_before(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch compiles a function for eight configurations, and then runs it uncompiled."""
    import torch._dynamo

    resets: list[str] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append("reset"))
    for count in (1, 2):
        train_tiny("trainer.max_steps=1")
        assert len(resets) == count


def test_what_was_typed_is_never_chosen_again(
    train_tiny: Train, probe: Probe, machine: Callable[..., None]
) -> None:
    machine("NVIDIA A100", "bf16-mixed", 4)
    interrupted(train_tiny, probe, "trainer.micro_batch_size=1")
    machine("Tesla T4", "bf16-mixed", 2)
    train_tiny("ckpt_path=last", "trainer.max_steps=8")
    assert used() == ("32-true", 1)
    assert stored()["auto"]["settings"] == []


def test_a_setting_without_effect_is_reported_once_on_a_resume(
    train_tiny: Train, probe: Probe, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(train_tiny, probe)
    assert stored()["auto"]["settings"] == ["micro_batch_size"]  # its choice is looked at again
    capsys.readouterr()
    train_tiny("ckpt_path=last", "callbacks.early_stopping_patience=5")
    line = "callbacks.early_stopping_patience: no effect"
    assert capsys.readouterr().err.count(line) == 1
    assert (FOLDER / "train.log").read_text("utf-8").count(line) == 1


@pytest.mark.parametrize("device", ["Tesla T4", "NVIDIA A100"])
def test_typing_on_a_resume_has_the_last_word(device: str, machine: Callable[..., None]) -> None:
    config = compose(["model.n_layer=1"])
    trainer = replace(
        config.trainer, precision="16-mixed", compile=True, micro_batch_size=4, accelerator="cpu"
    )
    config = replace(
        config,
        model=config.model.for_data(300, 32, 0),
        trainer=trainer,
        auto=AutoChoices(device="Tesla T4", settings=["precision", "compile", "micro_batch_size"]),
    )
    machine(device, "32-true", 2)
    typed = ["ckpt_path=last", "trainer.precision=16-mixed", "trainer.compile=auto"]
    resumed = resumed_here(config.to_mapping(), compose(typed), "a.ckpt")
    same = device == "Tesla T4"
    assert resumed.trainer.precision == "16-mixed"
    assert resumed.trainer.compile == "auto"
    assert resumed.trainer.micro_batch_size == (4 if same else "auto")
    assert resumed.auto.settings == (["micro_batch_size"] if same else [])


def settled_on(
    tiny: list[str], settings: list[str], devices: int = 1, **trainer: Any
) -> dict[str, Any]:
    """The settings of the trainer on a device on which `auto` chose `settings` before."""
    config = compose(tiny)
    data = TokenDataModule(config.data, micro_batch_size=1)
    data.setup()
    config = replace(
        config,
        trainer=replace(config.trainer, **{"micro_batch_size": 4, **trainer}),
        auto=AutoChoices(device=hardware.device_name("cpu"), settings=settings),
    )
    return settled(config, data, "cpu", devices).to_mapping()["trainer"]


def test_a_compilation_that_nobody_asked_for_is_not_required(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("azllm_lightning"), "propagate", True)
    monkeypatch.setattr(hardware, "missing_for_compile", lambda device: "Triton")
    assert settled_on(tiny, ["compile"], compile=True)["compile"] is False
    assert "not compiled, because it needs Triton" in caplog.text
    with pytest.raises(ValueError, match=r"trainer\.compile=true needs Triton"):
        settled_on(tiny, [], compile=True)
    monkeypatch.setattr(hardware, "missing_for_compile", lambda device: "")
    monkeypatch.setattr(hardware, "why_not_compiled", lambda device: "")
    assert settled_on(tiny, ["compile"], compile=True)["compile"] is True


def test_a_micro_batch_that_does_not_divide_a_step_is_chosen_again(tiny: list[str]) -> None:
    """On two devices, each takes 2 of the 4 sequences."""
    config = compose([*tiny, "trainer.micro_batch_size=4"])
    batch.check_devices(replace(config, auto=AutoChoices(settings=["micro_batch_size"])), 2)
    with pytest.raises(ValueError, match="micro_batch_size=4 does not divide"):
        batch.check_devices(config, 2)
    assert settled_on(tiny, ["micro_batch_size"], devices=2)["micro_batch_size"] == 2
    with pytest.raises(ValueError, match="micro_batch_size=4 does not divide"):
        settled_on(tiny, [], devices=2)
