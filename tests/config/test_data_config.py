from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from azllm_lightning.config.compose import compose
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.strict import from_mapping

CONF = Path(__file__).parents[2] / "conf" / "data"


def composed(name: str) -> dict[str, Any]:
    """conf/data/NAME.yaml on top of what it names in its defaults."""
    import hydra
    from omegaconf import OmegaConf

    with hydra.initialize_config_dir(str(CONF.parent), version_base="1.3"):
        values = OmegaConf.to_container(hydra.compose(overrides=[f"+data={name}"]))
    assert isinstance(values, dict)
    return values["data"]


@pytest.mark.parametrize("name", ["text", "tales", "fineweb2", "wikipedia"])
def test_shipped_configs_are_valid(name: str) -> None:
    config = from_mapping(DataConfig, composed(name), "data")
    assert config.name == name


def test_the_classes_defaults_are_those_of_text() -> None:
    assert from_mapping(DataConfig, composed("text"), "data") == DataConfig()
    assert set(composed("text")) == set(DataConfig.__dataclass_fields__)


@pytest.mark.parametrize("name", ["fineweb2", "wikipedia"])
def test_hub_urls_are_pinned_to_a_commit(name: str) -> None:
    config = from_mapping(DataConfig, composed(name), "data")
    for path in [*config.paths, *config.val_paths]:
        revision = path.removeprefix("hf://datasets/").split("@")[1].split("/")[0]
        assert len(bytes.fromhex(revision)) == 20


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 256}, "data.vocab_size=256 must be at least 257"),
        ({"vocab_size": 65_537}, "data.vocab_size=65537 must be at most 65536"),
        ({"val_fraction": 0.0}, "data.val_fraction=0.0 must be between 0 and 1"),
        ({"val_fraction": 1.0}, "data.val_fraction=1.0 must be between 0 and 1"),
        ({"max_bytes": 0}, "data.max_bytes=0 must be at least 1"),
        ({"max_document_bytes": 3}, "data.max_document_bytes=3 must be at least 64"),
        ({"block_size": 0}, "data.block_size=0 must be at least 1"),
        ({"val_windows": 0}, "data.val_windows=0 must be at least 1"),
        ({"num_workers": -1}, "data.num_workers=-1 must be at least 0"),
        ({"prepare_workers": 0}, "data.prepare_workers=0 must be at least 1"),
        ({"token_replacement": 1.0}, "data.token_replacement=1.0 must be in [0, 1)"),
        ({"token_replacement": -0.1}, "data.token_replacement=-0.1 must be in [0, 1)"),
        ({"txt_documents": "lines"}, "data.txt_documents=lines must be one of blank_lines, file"),
        ({"on_bad_utf8": "ignore"}, "data.on_bad_utf8=ignore must be one of replace, refuse"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        DataConfig(**values)
    assert message in str(error.value)


@pytest.mark.parametrize("verb", ["train", "prepare"])
def test_a_text_that_would_be_ignored_is_refused(verb: str) -> None:
    with pytest.raises(ValueError, match=r"data\.path=a\.txt is not read.*: add data=text"):
        compose(["data=tales", "data.path=a.txt"], verb)


def test_all_mistakes_at_once() -> None:
    with pytest.raises(ValueError) as error:
        DataConfig(vocab_size=1, block_size=0)
    assert len(str(error.value).splitlines()) == 2
