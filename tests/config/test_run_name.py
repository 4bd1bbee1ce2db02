"""What a run is called that nobody named."""

from __future__ import annotations

from pathlib import Path

import pytest

from azllm_lightning.config.compose import compose
from azllm_lightning.config.data import DataConfig
from azllm_lightning.config.run import RunConfig, default_run_name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("kitab.txt", "kitab"),
        ("/mətnlər/Qız qalası.jsonl.gz", "Qız qalası"),
        ("ko\u0308hnə.txt", "köhnə"),
        ("kitablar/", "kitablar"),
        ("kitablar/*.txt", "kitablar"),
        ("kitablar/{a,b}/*.parquet", "kitablar"),
        ("C:\\kitablar\\bir.csv", "bir"),
        ("hf://datasets/adam/korpus/data/*.parquet", "data"),
        ("https://example.org/kitab.txt?download=1", "kitab"),
        ("a: b?.txt", "a_ b"),
        ("a'b.txt", "a_b"),
        ("con.txt", "text"),
        ("x" * 300, "text"),
        ("...", "text"),
        (".", Path.cwd().name),
        ("*.txt", Path.cwd().name),
    ],
)
def test_it_has_the_name_of_its_text(path: str, name: str) -> None:
    assert default_run_name(DataConfig(path=path)) == name


def test_a_data_set_a_prepared_folder_and_a_name_of_ones_own() -> None:
    assert default_run_name(DataConfig(name="wikipedia", path="hf://a/b.parquet")) == "wikipedia"
    assert default_run_name(DataConfig(dir="/data/hazır mətn")) == "hazır mətn"
    assert default_run_name(DataConfig(path=["bir.txt", "iki.txt"])) == "bir"
    assert default_run_name(DataConfig()) == "text"


def test_settings_fill_it_in_and_a_typed_name_counts() -> None:
    named = compose(["data=text", "data.path=Nağıllar.txt"])
    assert (named.run_name, named.given_name) == ("Nağıllar", None)
    stored = RunConfig.from_mapping(named.to_mapping())
    assert stored.run_name == "Nağıllar"
    assert compose(["data=text", "data.path=a.txt", "run_name=b"]).given_name == "b"
    assert compose(["experiment=small_text", "data.path=a.txt"]).run_name == "small_text"
    assert compose([]).run_name == "tales"
    with pytest.raises(ValueError, match=r"data\.max_bytes"):
        compose(["data=text", "data.path=a.txt", "data.max_bytes=0"])


def test_the_name_of_a_run_is_that_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest version that has a checkpoint; what is there under that name is a path."""
    monkeypatch.chdir(tmp_path)
    for place in ("logs/ad/version_9", "logs/ad/version_10", "logs/iki/version_0", "logs/fayl/x"):
        checkpoints = Path(place, "checkpoints")
        checkpoints.mkdir(parents=True)
        (checkpoints / "best.ckpt").touch()
    Path("logs/ad/version_11/checkpoints").mkdir(parents=True)
    logs = "logs_dir=logs"
    newest = str(Path("logs/ad/version_10"))
    assert compose([logs, "init_from=ad"]).init_from == newest
    assert compose([logs, "teachers=ad"]).teachers == newest
    two = compose([logs, "teachers=[ad,iki,yox,fayl]"])
    assert two.teachers == [newest, str(Path("logs/iki/version_0")), "yox", "fayl"]
    assert RunConfig.from_mapping(two.to_mapping()).teachers == two.teachers
    assert compose(["init_from=ad"]).init_from == "ad"
    Path("ad").mkdir()
    assert compose([logs, "init_from=ad"]).init_from == "ad"
