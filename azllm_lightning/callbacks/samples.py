"""Texts that the model writes at each validation, for TensorBoard: one sees it learn the language."""

from __future__ import annotations

import unicodedata

from lightning.pytorch import Callback, LightningModule, Trainer

from azllm_lightning.callbacks.tensorboard import writers
from azllm_lightning.config.callbacks import SamplesConfig
from azllm_lightning.inference.sampling import sample
from azllm_lightning.training.causal_lm import CausalLM

PROMPTS = {
    "tales": ["Bir kənddə", "Mənim adım", "Bir gün balaca dovşan"],
    "text": ["Azərbaycanın paytaxtı", "Bu gün hava", "Uşaqlar məktəbdən qayıdanda", "2020-ci ildə"],
}
"""Where callbacks.samples.prompts is null: for the text that data=tales writes, and for any other."""

SEED = 0
"""The same at each validation, so that what differs is the model."""

MARKDOWN = str.maketrans(
    dict.fromkeys(map(chr, [*range(32), 127]), "\ufffd")
    | {character: f"&#{ord(character)};" for character in "&<>|`*_[]\\"}
    | {"\n": "<br>", "\t": " "}
)
"""What would be read as markup in a cell of a table, and the control characters that an untrained model writes."""


class Samples(Callback):
    """Continues the same prompts after each validation, greedily and by chance, as the text "samples" of its step.

    Neither the global random state nor the mode of the network is changed, and the way through the network is the
    uncompiled one.
    """

    def __init__(self, config: SamplesConfig, data: str) -> None:
        prompts = config.prompts or PROMPTS["tales" if data == "tales" else "text"]
        self.prompts = [
            unicodedata.normalize("NFC", prompt) for prompt in prompts
        ]  # as they stand in what comes back
        self.max_new_tokens, self.temperature = config.max_new_tokens, config.temperature

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table: a row for each prompt."""
        assert isinstance(pl_module, CausalLM)
        for writer in writers(trainer):
            writer.add_text("samples", self._table(pl_module), trainer.global_step)

    def _table(self, module: CausalLM) -> str:
        tokenizer = module.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        columns = [
            sample(
                module.net,
                tokenizer,
                self.prompts,
                self.max_new_tokens,
                temperature=temperature,
                seed=SEED,
            )
            for temperature in (0.0, self.temperature)
        ]
        rows = [f"| greedy | temperature {self.temperature:g} |", "|---|---|"]
        for prompt, *texts in zip(self.prompts, *columns, strict=True):
            cells = [
                f"**{prompt.translate(MARKDOWN)}**{text[len(prompt) :].translate(MARKDOWN)}"
                for text in texts
            ]
            rows.append(f"| {' | '.join(cells)} |")
        return "\n".join(rows)
