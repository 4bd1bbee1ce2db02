"""The settings of conf/model, and the complete shape of a GPT once the data is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from azllm_lightning.cli.messages import tr
from azllm_lightning.config.strict import Problems, from_mapping


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The sizes of a Qwen3 decoder, except those that come from the data.

    If None, n_kv_head becomes n_head, and intermediate_size becomes 8/3 n_embd rounded up to a
    multiple of 64 (a SwiGLU of that width has as many parameters as an MLP of 4 n_embd; Shazeer
    2020, arXiv:2002.05202).

    Raises ValueError if a size is out of range.
    """

    n_layer: int
    n_head: int  # query heads
    n_embd: int  # width of the residual stream
    # Key and value heads, each shared by n_head / n_kv_head query heads.
    n_kv_head: int | None = None
    intermediate_size: int | None = None  # width inside the MLP
    # Dropout probability of each residual branch and of the embeddings.
    dropout: float = 0.0
    tie_embeddings: bool = False  # the output head is the embedding table
    rope_theta: float = 10_000.0  # base of the rotary wavelengths
    norm_eps: float = 1e-6  # added to the mean square before its root

    def __post_init__(self) -> None:
        if self.n_kv_head is None:
            object.__setattr__(self, "n_kv_head", self.n_head)
        if self.intermediate_size is None:
            object.__setattr__(self, "intermediate_size", -(-8 * self.n_embd // (3 * 64)) * 64)
        problems = Problems("model")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("dropout", "tie_embeddings", "eos_id"):
                problems.require(value > 0, field.name, value, tr("above 0"))
        problems.require(0 <= self.dropout < 1, "dropout", self.dropout, tr("in [0, 1)"))
        problems.raise_if_any()

    def check_heads(self) -> None:
        """Raise ValueError if the sizes do not divide each other as required.

        Not a rule of every config: what is typed for a resume is composed over the defaults, and
        their sizes are not those of that run.
        """
        problems = Problems()
        assert self.n_kv_head is not None
        if self.n_embd % self.n_head:
            nearest = max(1, round(self.n_embd / self.n_head / 2)) * 2 * self.n_head
            problems.add(
                tr(
                    "model.n_embd={n_embd} is not divisible by model.n_head={n_head}; "
                    "the nearest width that is: {nearest}",
                    n_embd=self.n_embd,
                    n_head=self.n_head,
                    nearest=nearest,
                )
            )
        elif self.head_dim % 2:
            problems.add(
                tr(
                    "model.n_embd={n_embd} / model.n_head={n_head} gives heads of width "
                    "{head_dim}, but rotary embeddings need an even width",
                    n_embd=self.n_embd,
                    n_head=self.n_head,
                    head_dim=self.head_dim,
                )
            )
        if self.n_head % self.n_kv_head:
            problems.add(
                tr(
                    "model.n_head={n_head} is not divisible by model.n_kv_head={n_kv_head}",
                    n_head=self.n_head,
                    n_kv_head=self.n_kv_head,
                )
            )
        problems.raise_if_any()

    @classmethod
    def read(cls, values: Mapping[str, Any], group: str) -> ModelConfig:
        """The config of `values`; a GPTConfig if they include the sizes that come from the data."""
        from_data = {field.name for field in fields(GPTConfig)} - {
            field.name for field in fields(ModelConfig)
        }
        is_settled = from_data <= values.keys()
        if found := sorted(from_data & values.keys()) if not is_settled else []:
            raise ValueError(
                tr(
                    "{keys}: set by the data; use data.vocab_size and data.block_size",
                    keys=", ".join(f"{group}.{key}" for key in found),
                )
            )
        return from_mapping(GPTConfig if is_settled else ModelConfig, values, group)

    def for_data(self, vocab_size: int, block_size: int, eos_id: int) -> GPTConfig:
        """The complete shape for a tokenizer of `vocab_size` tokens and windows of `block_size`."""
        own = {field.name: getattr(self, field.name) for field in fields(ModelConfig)}
        return GPTConfig(**own, vocab_size=vocab_size, block_size=block_size, eos_id=eos_id)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.n_embd // self.n_head


@dataclass(frozen=True, kw_only=True)
class GPTConfig(ModelConfig):
    """The complete shape of a GPT: the model's own sizes and those that come from the data.

    Raises ValueError if the sizes are out of range or do not divide each other as required.
    """

    vocab_size: int  # tokens in the vocabulary
    block_size: int  # longest context, in tokens
    eos_id: int = 0  # the end-of-text token

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_heads()
        problems = Problems("model")
        wanted = tr("inside the vocabulary of {vocab_size:,} tokens", vocab_size=self.vocab_size)
        problems.require(0 <= self.eos_id < self.vocab_size, "eos_id", self.eos_id, wanted)
        problems.raise_if_any()

    def num_params(self, embeddings: bool = True) -> int:
        """Exact number of parameters; without `embeddings`, no token embeddings and no head."""
        assert self.n_kv_head is not None
        assert self.intermediate_size is not None
        heads = self.n_head + self.n_kv_head
        attention = 2 * self.n_embd * heads * self.head_dim + 2 * self.head_dim
        mlp = 3 * self.n_embd * self.intermediate_size
        body = self.n_layer * (attention + mlp + 2 * self.n_embd) + self.n_embd
        tables = 1 if self.tie_embeddings else 2
        return body + embeddings * tables * self.vocab_size * self.n_embd

    def flops_per_token(self) -> int:
        """Floating-point operations per token, forward and backward, in a full window of
        block_size.

        6 N + 12 n_layer n_embd block_size, as in PaLM (arXiv:2204.02311, appendix B): N counts the
        weights that are multiplied, the head but not the embedding look-up, and attention counts as
        if it were not causal.
        """
        multiplied = self.num_params(embeddings=False) + self.vocab_size * self.n_embd
        return 6 * multiplied + 12 * self.n_layer * self.n_embd * self.block_size

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain types; `GPTConfig(**config.to_dict()) == config`."""
        return asdict(self)
