"""python -m azllm_lightning.export out=FOLDER: write a checkpoint in another format."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from azllm_lightning.cli import entrance
from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.config.verbs import ExportConfig

if TYPE_CHECKING:
    from azllm_lightning.data.tokenizer import Tokenizer
    from azllm_lightning.model.gpt import GPT


def main() -> None:
    """Command-line entry point."""
    entrance.main("export", export, ExportConfig.from_mapping)


def export(config: ExportConfig) -> Path:
    """Write the model of a checkpoint and its model card into a new folder, and return the folder.

    Raises ValueError if the folder exists or a checkpoint or package is missing, and OSError if the
    folder cannot be written; in each case nothing is left behind.
    """
    use_language(config.lang)
    from azllm_lightning.callbacks.text import size_text
    from azllm_lightning.formats import model_card
    from azllm_lightning.formats.load import load, origin, read_checkpoint, stored_config
    from azllm_lightning.formats.new_folder import new_folder
    from azllm_lightning.formats.suite_card import card_section
    from azllm_lightning.report.pictures import PICTURE, training_picture
    from azllm_lightning.runs.folder import find_checkpoint

    path = find_checkpoint(config.ckpt_path, config.run_name, Path(config.logs_dir))
    model, tokenizer = load(path)
    out = Path(config.out or "")
    name = out.name
    training: dict[str, str] = {}
    from_scratch = False
    if path.is_file():
        checkpoint = read_checkpoint(path)
        name = stored_config(checkpoint).get("run_name", name)
        training = model_card.training_rows(checkpoint, model.config.block_size)
        from_scratch = model_card.is_from_scratch(checkpoint)
    with new_folder(out) as folder:
        usage = _write(model, tokenizer, folder, config, name)
        picture = training_picture(path)
        if picture is not None:
            (folder / PICTURE).write_text(picture, encoding="utf-8")
        card = model_card.model_card(
            name,
            model.config,
            config.license,
            usage(out.name),
            training,
            from_scratch,
            evaluation=card_section(path),
            picture=None if picture is None else PICTURE,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    print(tr("from {path}", path=origin(path)))
    for file in sorted(out.iterdir()):
        print(f"{size_text(file.stat().st_size):>10}  {file}")
    print(tr("load it:"))
    print(textwrap.indent(model_card.code_of(usage(out.as_posix())), "  "))
    if note := model_card.license_note(config.license):
        print(entrance.for_terminal(note), file=sys.stderr)
    return out


def _write(
    model: GPT, tokenizer: Tokenizer, folder: Path, config: ExportConfig, name: str
) -> Callable[[str], str]:
    """Write the model in `config.format`; returns its usage section by the place of the folder."""
    from azllm_lightning.formats import gguf, huggingface, model_card, state_dict

    if config.format == "gguf":
        gguf.write_gguf(model, tokenizer, folder, config.quant, name)
        size = model.config.block_size
        return lambda place: model_card.gguf_usage(place, config.quant, name, size)
    if config.format == "hf":
        huggingface.write_hf(model, tokenizer, folder)
        return model_card.hf_usage
    state_dict.write_state_dict(model, tokenizer, folder)
    return lambda place: model_card.state_dict_usage(place, model.config)


if __name__ == "__main__":
    main()
