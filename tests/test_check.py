"""The verb `check`: a real one of a tiny run, and what it does when parts of it fail."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from check_findings import findings
from training_runs import Probe

from azllm_lightning.check import check
from azllm_lightning.config.compose import compose
from azllm_lightning.config.verbs import CheckConfig
from azllm_lightning.data.pipeline import prepare
from azllm_lightning.machine import checkup, experiment, loading, products, storage
from azllm_lightning.machine.busy import processor_times
from azllm_lightning.machine.checkup import PARTS
from azllm_lightning.train import train


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short measurements, and no compiling, which takes half a minute."""

    def isolated(target: str, *args: str, seconds: float) -> dict[str, Any]:
        if "compil" in target:
            raise ValueError("no compiler")
        rate = {"flops_per_second": 1e11, "relative_error": 1e-7, "size": 9, "problem": None}
        return dict.fromkeys(products.TYPES, rate)

    monkeypatch.setattr(checkup, "isolated", isolated)
    monkeypatch.setattr(storage, "MOST_BYTES", 2**20)
    monkeypatch.setattr(loading, "TALES_BYTES", 20_000)
    monkeypatch.setattr(loading, "VOCAB_SIZE", 300)
    monkeypatch.setattr(loading, "SECONDS", 0.05)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Runs are trained in this process, which saves seconds; gives the settings of each so far."""
    sessions: list[list[str]] = []

    def train_here(
        folder: Path, name: str, settings: list[str], ends_early: bool, seconds: float
    ) -> None:
        from azllm_lightning.cli.entrance import Resumable

        sessions.append([*settings, f"run_name={name}"])
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            with pytest.raises(Resumable):
                train(compose(sessions[-1]))

    monkeypatch.setattr(experiment, "train_in_child", train_here)
    return sessions


def settings(tiny: list[str], *more: str) -> CheckConfig:
    config: CheckConfig = compose([*tiny, *more], "check")
    return config


def report() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(
        Path("check.json").read_text(encoding="utf-8"), parse_constant=pytest.fail
    )
    return values


@pytest.mark.slow
def test_a_check_in_processes_of_its_own(
    small: None, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = [text for text in tiny if "compile" not in text]
    # A GPU is asked for, and the text would come from the network.
    config = settings(
        tiny,
        "data=fineweb2",
        "data.vocab_size=400",
        "data.val_windows=4",
        "trainer.accelerator=gpu",
        "trainer.max_steps=6",
        "minutes=20",
    )
    check(config)
    found = report()
    assert {part: found[part]["status"] for part in PARTS} == {
        **dict.fromkeys(PARTS, "ok"),
        "compile": "failed",
    }
    steps = found["steps"]
    assert (steps["steps"], steps["sequences_per_step"], steps["vocab_size"]) == (4, 4, 400)
    assert steps["tokens_per_second"] > 0
    assert steps["mfu_of_products"] == pytest.approx(
        steps["tokens_per_second"] * steps["flops_per_token"] / 1e11
    )
    assert (steps["precision"], steps["compile"], steps["device"]) == ("32-true", False, "cpu")
    assert found["resume"]["is_exact"]
    # The example of the tests of the table, whose keys are documented, has the keys of this one.
    example = findings(compile={"status": "failed"})
    for part in ("machine", "experiment", "disk", "data", "steps", "resume"):
        assert found[part].keys() == example[part].keys()
    assert found.keys() == example.keys()
    assert found["data"]["is_random_text"]
    assert found["missing_device"]
    assert [path.name for path in Path().iterdir()] == ["check.json"]
    printed = capsys.readouterr()
    assert re.search(r"^resume +PASS: resumed after step 2 of 4", printed.out, re.MULTILINE)
    assert "compile   FAILED: no compiler" in printed.out
    assert printed.out.splitlines()[-1] == "file      check.json"
    assert "4 steps of tiny, 4 x 32 tokens each" in printed.err


@pytest.mark.thorough
def test_a_resume_that_differs_is_found(
    small: None,
    in_process: list[list[str]],
    probe: Probe,
    tiny: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    probe.factor = lambda step, batch: 1 + 0.01 * ("ckpt_path=last" in in_process[-1])
    with pytest.raises(SystemExit, match="1"):
        check(settings(tiny, "minutes=20"))
    found = report()["resume"]
    assert found["is_exact"] is False
    assert re.match(r"step 4: \w+ is .* in measured, .* in resumed", found["first_difference"])
    assert "FAIL: step 4" in capsys.readouterr().out
    assert ["ckpt_path=last" in typed for typed in in_process] == [False, True]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "typed",
    [
        ["teachers=[RUN]"],
        ["init_from=RUN"],
        # Its place is relative, and a run of a check has another current folder.
        ["init_from=RUN", "data.tokenizer=RUN", "data.vocab_size=300"],
    ],
    ids=["teachers", "init_from", "tokenizer"],
)
def test_random_text_has_the_tokenizer_of_the_models_that_a_run_needs(
    typed: list[str],
    small: None,
    in_process: list[list[str]],
    tiny: list[str],
    tiny_run: Path,
) -> None:
    config = settings(tiny, "minutes=20", *[text.replace("RUN", str(tiny_run)) for text in typed])
    check(config)
    found = report()
    assert [found[part]["reason"] for part in ("data", "steps", "resume")] == [None] * 3
    assert found["resume"]["is_exact"]
    assert not any("init_from" in text for text in in_process[-1])
    # What other programs did meanwhile is in it, where the system says that.
    assert (found["steps"]["others_share"] is None) == (processor_times() is None)


@pytest.mark.thorough
@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_mix_is_left_out_where_the_text_is_random(
    is_prepared: bool, small: None, in_process: list[list[str]], tiny: list[str]
) -> None:
    documents = [f"{i}. Bakı Xəzər dənizinin sahilindədir, {i * i} il." for i in range(900)]
    Path("kitab.txt").write_text("\n\n".join(documents), encoding="utf-8")
    text = ["data=text", "data.path=kitab.txt", "data.mix=kitab.txt: 2"]
    kept = [setting for setting in tiny if "tales" not in setting and "val_" not in setting]
    if is_prepared:
        text.append(f"data.dir={Path('shards').absolute()}")
        prepare(compose([*kept, *text]).data)
    check(settings(kept, *text, "minutes=20"))
    found = report()
    assert found["data"]["is_random_text"] != is_prepared
    assert [found[part]["reason"] for part in ("data", "steps", "resume")] == [None] * 3
    assert compose(in_process[-1]).data.mix == ("kitab.txt: 2" if is_prepared else None)


def test_a_model_that_is_not_there_is_a_row(small: None, tiny: list[str]) -> None:
    check(settings(tiny, "init_from=yoxdur"))
    found = report()
    assert found["data"]["status"] == "failed"
    assert "init_from=yoxdur: no such file" in found["data"]["reason"]
    assert "see the row data" in found["advice"]


def test_a_deterministic_baseline_is_trained_for_a_gpu(
    in_process: list[list[str]], tiny: list[str], tmp_path: Path
) -> None:
    """Steps are measured as the run would do them, and a resume is compared with
    trainer.deterministic=true.
    """
    from azllm_lightning.machine.random_text import random_text
    from azllm_lightning.machine.sample import Sample

    random_text(tmp_path / "data", 300, 400)
    run = compose(tiny)
    shape = run.model.for_data(300, run.data.block_size, 0)
    trial = experiment.Experiment(
        run, run.overrides, "cuda", shape, tmp_path / "data", tmp_path / "runs"
    )
    trial.folder.mkdir()
    found = experiment.prove_resume_exact(trial, Sample(2, 4, None, 1.0), 60)
    assert (found["is_exact"], found["deterministic"]) == (True, True)
    assert all("trainer.deterministic=true" in typed for typed in in_process)
    assert [typed[-1] for typed in in_process] == ["run_name=baseline", "run_name=resumed"]


@pytest.mark.thorough
def test_a_large_step_is_computed_from_a_smaller_one(
    small: None,
    in_process: list[list[str]],
    tiny: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    batch = "trainer.global_batch_size=64"
    seconds = checkup.step_seconds(
        compose([*tiny, batch]), compose(tiny).model.for_data(300, 32, 0), 16, 1e11
    )
    monkeypatch.setattr(checkup, "SHARE_OF_STEPS", 5 * seconds / 1180)
    check(settings(tiny, batch, "trainer.micro_batch_size=16", "minutes=20"))
    steps = report()["steps"]
    assert steps["sequences_per_step"] < 64
    assert steps["is_computed"]
    per_step = 64 * 32 / steps["tokens_per_second"]
    assert per_step > steps["step_seconds"]
    assert steps["run_hours"] == pytest.approx(per_step * steps["max_steps"] / 3600)
    assert "computed from" in capsys.readouterr().out


def test_what_fails_is_a_row_and_the_rest_goes_on(
    small: None,
    tiny: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("no such device")

    monkeypatch.setattr(checkup, "measure_disk", fail)
    monkeypatch.setattr(checkup, "measure_data", fail)
    check(settings(tiny, "lang=az"))
    found = report()
    assert found["disk"]["reason"] == "RuntimeError: no such device"
    assert [found[part]["status"] for part in ("steps", "resume")] == ["skipped", "skipped"]
    out = capsys.readouterr().out
    assert "disk      ALINMADI: RuntimeError: no such device" in out
    assert "Traceback" not in out


def test_a_run_that_cannot_start_is_a_row(
    small: None, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object) -> None:
        raise ValueError("the run measured ended with exit code 2:\npanel\nerror: no memory: buy")

    monkeypatch.setattr(experiment, "train_in_child", refused)
    check(settings(tiny))
    found = report()
    assert (found["steps"]["status"], found["steps"]["reason"]) == ("failed", "no memory: buy")
    assert found["resume"]["status"] == "skipped"
    assert "does not run here" in found["advice"]


def test_a_run_that_takes_too_long_is_not_called_slow(
    small: None, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*args: object) -> None:
        raise TimeoutError("not done after 20 s")

    monkeypatch.setattr(experiment, "train_in_child", hang)
    check(settings(tiny))
    found = report()
    assert (found["steps"]["status"], found["steps"]["timed_out"]) == ("skipped", True)
    assert not found["resume"]["timed_out"]
    assert "set a larger minutes=" in found["advice"]
    assert "very slow" not in found["advice"]


def test_ctrl_c_ends_it_with_what_there_is(
    small: None, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkup, "measure_data", interrupted)
    with pytest.raises(SystemExit, match="130"):
        check(settings(tiny))
    found = report()
    assert found["interrupted"]
    statuses = [found[part]["status"] for part in PARTS]
    assert statuses == ["ok", "ok", *["interrupted"] * 4]


def test_what_does_not_fit_the_time_is_skipped(
    small: None, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tiny, "model.n_embd=8192", "model.n_layer=40", "minutes=0.5")
    check(config)
    found = report()
    assert found["steps"]["status"] == "skipped"
    assert re.search(r"would take about .*: set minutes=\d+$", found["steps"]["reason"])
    assert "very slow here" in found["advice"]


def test_settings_are_those_of_a_run_and_two_more(tiny: list[str]) -> None:
    config = settings(tiny, "minutes=3", "out=hesabat.json")
    assert (config.minutes, config.out) == (3.0, "hesabat.json")
    assert config.run == compose(tiny)
    with pytest.raises(ValueError, match=r"minutes=0.0 must be above 0"):
        settings(tiny, "minutes=0")
    with pytest.raises(ValueError, match=r"n_embd(.|\n)*minutes='two' is not a number"):
        settings(tiny, "minutes=two", "model.n_embd=33", "model.n_head=2")
    with pytest.raises(ValueError, match="check trains its own runs"):
        settings(tiny, "ckpt_path=last")
