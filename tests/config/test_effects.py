"""Settings that contradict each other are refused; those without effect are reported."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from azllm_lightning.config.compose import compose

PAIRS = {
    # what was typed: the verb, and the settings that the message names
    "ckpt_path=last init_from=x": ("train", ["ckpt_path=last", "init_from=x"]),
    "+model.vocab_size=5": ("train", ["model.vocab_size", "data.vocab_size"]),
    "+model.block_size=5": ("train", ["model.block_size", "data.block_size"]),
    "data=text data.name=tales data.path=a.txt": ("train", ["data.name", "data.path=a.txt"]),
    "out=m quant=q8_0": ("export", ["quant=q8_0", "format=hf"]),
    "out=m quant=f16 format=pt": ("export", ["quant=f16", "format=pt"]),
    "out=m run_name=a ckpt_path=b.ckpt": ("export", ["run_name=a", "ckpt_path=b.ckpt"]),
    "run_name=a ckpt_path=b.ckpt": ("generate", ["run_name=a", "ckpt_path=b.ckpt"]),
    "run_name=a ckpt_path=b": ("evaluate", ["run_name=a", "ckpt_path=b"]),
    "data.path=a data.dir=b": ("evaluate", ["data.path=a", "data.dir=b"]),
    "pairs=true data.dir=b": ("evaluate", ["pairs=true", "data.dir"]),
}


@pytest.mark.parametrize(("typed", "verb", "named"), [(k, *v) for k, v in PAIRS.items()])
def test_two_settings_that_contradict_each_other(typed: str, verb: str, named: list[str]) -> None:
    with pytest.raises(ValueError) as refused:
        compose(typed.split(), verb)
    for name in named:
        assert name in str(refused.value)


WITHOUT_EFFECT = {
    "callbacks.early_stopping_patience=2": ("train", "callbacks.early_stopping=true"),
    "callbacks.samples.max_new_tokens=0 callbacks.samples.temperature=1": ("train", None),
    "schedule.name=constant schedule.min_lr_ratio=0.1": ("train", "schedule.name=linear"),
    "model.tie_embeddings=true optimizer.head_eps=1e-6": ("train", "model.tie_embeddings=false"),
    "model.tie_embeddings=true optimizer.head_lr=0.01": ("train", "model.tie_embeddings=false"),
    "init_from=a init_embeddings=random": ("train", "init_from=null"),
    "init_from=a init_attention=random": ("train", "init_from=null"),
    "data.text_field=mətn": ("train", "data=text data.path=a"),
    "data=text data.path=a data.tales_seed=1": ("prepare", "data=tales data.path=null"),
    "data=text data.path=a data.val_path=b data.val_fraction=0.1": ("train", "data.max_bytes=9"),
    "data.tokenizer=x data.tokenizer_sample_bytes=9": ("prepare", "data.tokenizer=null"),
    "temperature=0 seed=1": ("generate", "temperature=1"),
    "ckpt_path=a.ckpt logs_dir=b": ("generate", "ckpt_path=best"),
    "hf=m data.path=a run_name=b": ("evaluate", "hf=null"),
    "pairs=true data.text_field=b": ("evaluate", "pairs=false data.path=a"),
    "data.encoding=koi8_r": ("evaluate", "data.path=a"),
    "data=tales data.encoding=koi8_r": ("train", "data=text data.path=a"),
    "out=m ckpt_path=a.ckpt logs_dir=b": ("export", "ckpt_path=last"),
}


@pytest.mark.parametrize(
    ("typed", "verb", "cure"), [(typed, *rest) for typed, rest in WITHOUT_EFFECT.items()]
)
def test_a_setting_without_effect_is_reported(typed: str, verb: str, cure: str | None) -> None:
    (message,) = compose(typed.split(), verb).ignored()
    key, _, reason = message.partition(": no effect, since ")
    assert key in [text.partition("=")[0] for text in typed.split()]
    assert reason
    if cure is not None:
        assert compose([*typed.split(), *cure.split()], verb).ignored() == []


def test_defaults_are_never_reported() -> None:
    for verb, needed in {"train": [], "generate": [], "evaluate": [], "export": ["out=m"]}.items():
        assert compose(needed, verb).ignored() == []
    assert compose(["experiment=debug"]).ignored() == []


def test_the_command_reports_it(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("callbacks.early_stopping_patience=2", run=lambda config: None) == 0
    error = capsys.readouterr().err
    assert "callbacks.early_stopping_patience: no effect" in error


def test_a_name_is_given_unless_it_is_that_of_the_data() -> None:
    assert compose().given_name is None
    assert compose(["data=wikipedia"]).given_name is None
    assert compose(["run_name=tales"]).given_name == "tales"
    assert compose(["experiment=debug"]).given_name == "debug"
