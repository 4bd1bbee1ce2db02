"""Options anywhere, another Hydra in the same program, sweepers, and prompts from a pipe."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from azllm_lightning.cli import entrance
from azllm_lightning.cli.overrides import hydra_overrides
from azllm_lightning.config.compose import compose
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.run import RunConfig
from azllm_lightning.config.verbs import GenerateConfig
from azllm_lightning.data.pipeline import prepare
from azllm_lightning.data.remarks import prepare_and_warn
from azllm_lightning.data.typed import check_typed
from azllm_lightning.generate import generate
from azllm_lightning.runs.folder import claim, newest_run
from azllm_lightning.train import best_val_loss

OPTIONS = {
    "--cfg job": "data.block_size=64 {} seed=5",
    "--config-dir conf": "{} experiment=mine seed=5",
    "--config-dir=conf": "seed=5 {} experiment=mine",
    "-m": "seed=5 {} optimizer.lr=1e-3,1e-2",
    "--info searchpath": "seed=5 {} trainer.max_steps=2",
    "-i": "seed=5 {} trainer.max_steps=2",
}


@pytest.mark.parametrize(("option", "line"), OPTIONS.items())
def test_options_may_stand_anywhere(option: str, line: str) -> None:
    typed = hydra_overrides(line.format(option).split())
    settings = [text for text in typed if "=" in text and not text.startswith("-")]
    assert typed == [*settings, *option.split()]
    assert len(settings) == 2


def test_a_carriage_return_is_not_part_of_a_setting(command: Callable[..., int]) -> None:
    seen: list[RunConfig] = []
    assert command("run_name=a\r", "seed=5\r", run=seen.append) == 0
    assert (seen[0].run_name, seen[0].seed) == ("a", 5)


@pytest.mark.parametrize("dash", ["–", "—"])
def test_a_dash_of_a_text_program_is_named(
    dash: str, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(f"{dash}help") == 2
    assert "--help, with two plain hyphens" in capsys.readouterr().err


@pytest.fixture
def other_hydra(tmp_path: Path) -> Iterator[None]:
    """A program that uses Hydra with a folder of its own."""
    (tmp_path / "theirs.yaml").write_text("a: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base=None):
        yield


@pytest.mark.usefixtures("other_hydra")
def test_compose_and_the_hydra_of_a_notebook_leave_each_other_alone() -> None:
    theirs = GlobalHydra.instance().hydra
    assert compose(["run_name=x"]).run_name == "x"
    with pytest.raises(ValueError, match="did you mean"):
        compose(["run_nam=x"])
    assert GlobalHydra.instance().hydra is theirs
    assert hydra.compose("theirs") == {"a": 1}


def test_a_sweeper_gets_the_best_val_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    returned: list[object] = []
    monkeypatch.setattr(
        hydra, "main", lambda **_: lambda task: lambda: returned.append(task(CONFIG))
    )
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    CONFIG = OmegaConf.create({"lang": "en"})
    tasks = OmegaConf.create({"overrides": {"task": []}})
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: tasks))
    monkeypatch.setattr(sys, "argv", ["train"])
    (tmp_path / "summary.json").write_text('{"best_val_loss": 2.5}')
    config = compose()
    entrance.main("train", lambda _: tmp_path, lambda *_: config, best_val_loss)
    (tmp_path / "summary.json").write_text('{"best_val_loss": null}')
    entrance.main("train", lambda _: tmp_path, lambda *_: config, best_val_loss)
    assert returned == [2.5, float("inf")]


class Piped(io.TextIOWrapper):
    """Standard input that is a pipe with `content`."""

    def __init__(self, content: bytes) -> None:
        self.reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        super().__init__(os.fdopen(self.reading, "rb"))


@pytest.mark.usefixtures("tiny_run")
@pytest.mark.parametrize(
    ("content", "same"),
    [
        (b"", ""),
        (b"Bir g\xc3\xbcn\r\n", "Bir gün"),
        (b"\xef\xbb\xbfBir", "Bir"),
        (b"a\xff", "a\ufffd"),
    ],
)
def test_a_piped_prompt_is_a_typed_one(
    content: bytes,
    same: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def written(*typed: str) -> str:
        config = compose(["max_new_tokens=3", "seed=1", *typed], "generate")
        assert isinstance(config, GenerateConfig)
        generate(config)
        return capsys.readouterr().out

    monkeypatch.setattr(sys, "stdin", Piped(content))
    piped = written()
    assert piped == written(f"prompt={same}")
    if not content:
        monkeypatch.setattr(sys, "stdin", None)
        assert piped == written()


@pytest.mark.usefixtures("tiny_run")
def test_each_of_several_prompts_is_continued(capsys: pytest.CaptureFixture[str]) -> None:
    generate(compose(["prompt=[Bir gün,Bakı]", "max_new_tokens=2", "num_samples=2"], "generate"))
    texts = capsys.readouterr().out.split("\n" + "-" * 40 + "\n")
    assert [text[:3] for text in texts] == ["Bir", "Bir", "Bak", "Bak"]


def test_errors_about_a_run_list_the_runs(tmp_path: Path) -> None:
    claim("nağıl", tmp_path / "logs").release()
    with pytest.raises(ValueError, match="Runs there: nağıl"):
        newest_run("kitab", tmp_path / "logs")


TEXTS = [[], ["data.path=b.txt"], ["data.val_path=b.txt"], ["data=tales"]]


@pytest.mark.parametrize("typed", TEXTS)
def test_a_folder_of_another_text_is_refused(
    typed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "\n\n".join(f"Cümlə {i} belədir, {i * 7919} dəfə oxu." for i in range(2000))
    for name in ("a.txt", "b.txt"):
        Path(name).write_text(text, encoding="utf-8")
    sizes = ["data.vocab_size=300", "data.block_size=16", "data.dir=d"]
    first = ["data=text", "data.path=a.txt", *sizes]
    prepare(compose(first, "prepare").data)
    again = [*first, *typed] if typed else ["data=text", "data.path=./a.txt", *sizes]
    if typed == ["data=tales"]:
        again = [*typed, *sizes]
    config: DataConfig = compose(again, "prepare").data
    if not typed:
        check_typed(config, again)
        return
    with pytest.raises(ValueError, match=r"data\.dir=d was prepared from .*omit data\."):
        check_typed(config, again)


def test_the_size_of_a_given_tokenizer_cannot_be_chosen(trained: Path) -> None:
    folder = trained / "tiny" / "version_0"
    typed = ["data=text", "data.path=a", f"data.tokenizer={folder}"]
    check_typed(compose([*typed, "data.vocab_size=300"], "prepare").data, typed)
    typed.append("data.vocab_size=500")
    with pytest.raises(ValueError, match=r"data\.vocab_size=500: .* has 300 tokens"):
        check_typed(compose(typed, "prepare").data, typed)


def test_advice_on_too_little_text_knows_of_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("same.txt").write_text("Salam, dünya!\n\n" * 3000, encoding="utf-8")
    Path("line.txt").write_text("a" * 100_000, encoding="utf-8")
    text = "\n\n".join(f"Cümlə {i} belədir, {i * 7919} dəfə oxu." for i in range(200))
    Path("a.txt").write_text(text, encoding="utf-8")
    base = {"vocab_size": 300, "block_size": 32}
    for path, words in {"same.txt": "2,999 duplicates", "line.txt": "5 duplicates"}.items():
        with pytest.raises(ValueError, match=words):
            prepare(DataConfig(path=path, dir=f"{path}.d", **base))
    with pytest.raises(ValueError, match=r"200 documents were left out .* data\.val_path"):
        prepare(DataConfig(path="a.txt", val_path="a.txt", dir="v", **base))
    prepare_and_warn(DataConfig(path="a.txt", dir="few", val_fraction=0.05, **base))
    assert "windows of 32 tokens: val_loss will be inexact" in caplog.text
