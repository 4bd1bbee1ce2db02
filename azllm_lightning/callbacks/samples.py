"""Texts that the model generates at each validation, for TensorBoard and the terminal."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from azllm_lightning.callbacks.tensorboard import writers
from azllm_lightning.config.callbacks import SamplesConfig
from azllm_lightning.data.cleaning import clean
from azllm_lightning.data.datamodule import datamodule_of
from azllm_lightning.inference.sampling import sample
from azllm_lightning.training.causal_lm import CausalLM

PROMPTS = {
    "tales": ["Bir kənddə", "Mənim adım", "Bir gün balaca bir dovşan"],
    "text": ["Azərbaycanın paytaxtı", "Bu gün hava", "Uşaqlar məktəbdən qayıdanda", "2020-ci ildə"],
}
"""Used if callbacks.samples.prompts is null: for data=tales, and for any other text."""

SEED = 0
"""The same at each validation, so that only the model differs."""

MARKDOWN = str.maketrans(
    dict.fromkeys(map(chr, [*range(32), *range(127, 160)]), "\ufffd")
    | {character: f"&#{ord(character)};" for character in "&<>|`*_[]\\"}
    | dict.fromkeys("\n\x85\u2028\u2029", "<br>")
    | {"\t": " "}
)
"""Escapes for markup in a table cell, and for the control characters of an untrained model."""


class Samples(Callback):
    """Continues the same prompts after each validation, as the text "samples" of its step.

    Changes neither the global random state nor the mode of the network, and runs it uncompiled.
    """

    def __init__(self, config: SamplesConfig, data_name: str) -> None:
        prompts = config.prompts or PROMPTS["tales" if data_name == "tales" else "text"]
        # Normalized as `sample` returns them at the start of each text.
        self.prompts = [clean(prompt).rstrip(" ") for prompt in prompts]
        self.config = config
        self.latest = ""
        """The first of the last sampled texts, with its prompt."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a table with a row for each prompt, in the first process."""
        assert isinstance(pl_module, CausalLM)
        if not trainer.is_global_zero:
            return
        columns = self._columns(pl_module)
        self.latest = columns[1][0]
        for writer in writers(trainer):
            writer.add_text("samples", self._table(columns), trainer.global_step)

    def _columns(self, module: CausalLM) -> list[list[str]]:
        """A text for each prompt: the greedy ones, and the sampled ones."""
        tokenizer = datamodule_of(module.trainer).tokenizer
        return [
            sample(
                module.net,
                tokenizer,
                self.prompts,
                self.config.max_new_tokens,
                temperature=temperature,
                seed=SEED,
            )
            for temperature in (0.0, self.config.temperature)
        ]

    def _table(self, columns: list[list[str]]) -> str:
        # Settings, not words: a run may be continued, and shown, in another language.
        rows = [f"| temperature=0 | temperature={self.config.temperature:g} |", "|---|---|"]
        for prompt, *texts in zip(self.prompts, *columns, strict=True):
            cells = [
                f"**{prompt.translate(MARKDOWN)}**{text[len(prompt) :].translate(MARKDOWN)}"
                for text in texts
            ]
            rows.append(f"| {' | '.join(cells)} |")
        return "\n".join(rows)
