"""python -m azllm_lightning.export out=FOLDER: a checkpoint in the files of other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from azllm_lightning.cli import entrance
from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.config.strict import from_mapping, one_of

if TYPE_CHECKING:
    from azllm_lightning.data.tokenizer import Tokenizer
    from azllm_lightning.model.gpt import GPT


@dataclass(frozen=True)
class ExportConfig:
    """The settings of conf/export.yaml, commented there."""

    out: str | None
    format: str
    quant: str
    ckpt_path: str
    run_name: str | None
    logs_dir: str
    license: str
    lang: str | None = None

    def __post_init__(self) -> None:
        if not self.out:
            raise ValueError(tr("out is missing: name the folder to write, out=FOLDER"))
        one_of("format", self.format, ("hf", "gguf", "pt"))
        one_of("quant", self.quant, ("f16", "q8_0"))


def main() -> None:
    """The console entrance."""
    entrance.main("export", export)


def export(config: dict[str, Any], overrides: list[str] | None = None) -> Path:
    """Write the model of a checkpoint and its model card into a new folder, and return the folder.

    Raises ValueError for wrong settings, an existing folder, a missing checkpoint or package, and
    OSError if the folder cannot be written; in each case nothing is left behind.
    """
    settings = from_mapping(ExportConfig, config, "")
    use_language(settings.lang)
    from azllm_lightning.formats.load import load, read_checkpoint, stored_config
    from azllm_lightning.formats.model_card import model_card, training_rows
    from azllm_lightning.formats.new_folder import new_folder
    from azllm_lightning.runs.folder import find_checkpoint

    path = find_checkpoint(settings.ckpt_path, settings.run_name, Path(settings.logs_dir))
    model, tokenizer = load(path)
    out = Path(settings.out or "")
    name = out.name
    training: dict[str, str] = {}
    if path.is_file():
        checkpoint = read_checkpoint(path)
        name = stored_config(checkpoint).get("run_name", name)
        training = training_rows(checkpoint, model.config.block_size)
    with new_folder(out) as folder:
        usage = _write(model, tokenizer, folder, settings, name)
        card = model_card(name, model.config, settings.license, usage, training)
        (folder / "README.md").write_text(card, encoding="utf-8")
    print(tr("from {path}", path=path))
    for file in sorted(out.iterdir()):
        print(f"{file.stat().st_size / 1e6:10,.1f} MB  {file}")
    return out


def _write(
    model: GPT, tokenizer: Tokenizer, folder: Path, settings: ExportConfig, name: str
) -> str:
    """Write the model in the format asked for; returns the card's section on its use."""
    from azllm_lightning.formats import gguf, huggingface, model_card, state_dict

    out = Path(settings.out or "").name
    if settings.format == "gguf":
        gguf.write_gguf(model, tokenizer, folder, settings.quant, name)
        return model_card.gguf_usage(out, settings.quant, name, model.config.block_size)
    if settings.format == "hf":
        huggingface.write_hf(model, tokenizer, folder)
        return model_card.hf_usage(out)
    state_dict.write_state_dict(model, tokenizer, folder)
    return model_card.state_dict_usage(out, model.config)


if __name__ == "__main__":
    main()
