"""What does not fit a text, as far as it can be told before the text is prepared, which may take
long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.data import DataConfig, as_list
from azllm_lightning.config.run import RunConfig
from azllm_lightning.data.pipeline import is_prepared, prepared_folder, with_prepared
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.data.typed import changed
from azllm_lightning.formats.load import read_checkpoint, stored_config, tokenizer_folder
from azllm_lightning.runs.model_paths import find_model, read_tokenizer


def check_text_of_run(config: DataConfig, before: Mapping[str, Any], fingerprint: str) -> None:
    """Raise ValueError if other text is asked for than that of a run, which is still there.

    `before` are the settings of the run's data, and `fingerprint` is theirs. Text that may only
    have moved is prepared: it shows then whether it is the same, as other prepared text does.
    """
    keys = changed(config, before)
    if not keys or _may_have_moved(keys, before):
        return
    has_other = config.dir is None or config.dir != before.get("dir")
    if has_other and is_prepared(prepared_folder(config)):
        return
    own = with_prepared(replace(config, **{key: before[key] for key in keys}), fingerprint)
    if own.dir is None or not is_prepared(Path(own.dir)):
        return
    raise ValueError(
        tr(
            "{settings}: the checkpoint was trained on different data ({stored}), which is still "
            "in {folder}. {way_out}, or start a new run",
            settings=_settings({key: getattr(config, key) for key in keys}),
            stored=_settings({key: before[key] for key in keys}),
            folder=own.dir,
            way_out=way_out(keys),
        )
    )


def _may_have_moved(keys: list[str], before: Mapping[str, Any]) -> bool:
    """Whether only paths among `keys` differ, and nothing is at those `before` any more."""
    if not {"path", "val_path"}.issuperset(keys):
        return False
    paths = [path for key in keys for path in as_list(before[key])]
    return not any("://" in path or Path(path).exists() for path in paths)


def way_out(keys: list[str]) -> str:
    """How to resume with the data of the run."""
    names = ", ".join(f"data.{key}" for key in keys)
    return tr("Omit {names} to go on with the data of the run", names=names)


def check_tokens_of_models(config: RunConfig) -> None:
    """Raise ValueError if init_from or a teacher has another tokenizer than the text would get.

    A tokenizer is trained on the text unless data.tokenizer names one: it is another than that of a
    run on other text or with other settings. A resume has the text of its run.
    """
    if config.ckpt_path is not None or is_prepared(prepared_folder(config.data)):
        return
    given = config.data.tokenizer
    ours = None if given is None else Tokenizer.from_file(given)
    models = [("init_from", path) for path in as_list(config.init_from)]
    for key, path in [*models, *(("teachers", path) for path in config.teacher_paths)]:
        if ours is None:
            fits = not changed(config.data, _data_before(find_model(key, path)))
        else:
            fits = read_tokenizer(key, path).fingerprint == ours.fingerprint
        if not fits:
            raise ValueError(
                tr(
                    "{key}={path} was trained with another tokenizer than this text would get, so "
                    "it knows other tokens: prepare the text with its tokenizer, "
                    "data.tokenizer={folder}",
                    key=key,
                    path=path,
                    folder=tokenizer_folder(path),
                )
            )


def _data_before(path: Path) -> Mapping[str, Any]:
    """The settings of the data of the run that wrote the model; empty where that is not known."""
    stored = {} if path.is_dir() else stored_config(read_checkpoint(path))
    data: Mapping[str, Any] = stored.get("data", {})
    return data


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"data.{key}={value}" for key, value in values.items())
