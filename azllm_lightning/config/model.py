"""The shape of a GPT, checked before anything is built, and what follows from it by arithmetic."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a decoder in the shape of Qwen3.

    vocab_size, block_size and eos_id come from the data, the rest from conf/model. Left at None, n_kv_head
    becomes n_head and intermediate_size becomes 8/3 n_embd rounded up to a multiple of 64 (a SwiGLU of that
    width has the parameters of a plain MLP of 4 n_embd; Shazeer 2020, arXiv:2002.05202).

    Raises ValueError where the sizes cannot make a model.
    """

    vocab_size: int  # tokens in the vocabulary
    block_size: int  # longest context, in tokens
    n_layer: int
    n_head: int  # query heads
    n_embd: int  # width of the residual stream
    eos_id: int = 0  # the end-of-text token
    n_kv_head: int | None = (
        None  # key and value heads, each shared by n_head / n_kv_head query heads
    )
    intermediate_size: int | None = None  # width inside the MLP
    dropout: float = (
        0.0  # share of each residual branch and of the embeddings set to zero in training
    )
    tie_embeddings: bool = False  # the head is the embedding table
    rope_theta: float = 10_000.0  # base of the rotary wavelengths
    norm_eps: float = 1e-6  # added to the mean square before its root

    def __post_init__(self) -> None:
        if self.n_kv_head is None:
            object.__setattr__(self, "n_kv_head", self.n_head)
        if self.intermediate_size is None:
            object.__setattr__(self, "intermediate_size", -(-8 * self.n_embd // (3 * 64)) * 64)
        assert self.n_kv_head is not None
        sizes = (
            "vocab_size",
            "block_size",
            "n_layer",
            "n_head",
            "n_embd",
            "n_kv_head",
            "intermediate_size",
        )
        problems = [
            f"model.{name}={getattr(self, name)} is not positive"
            for name in (*sizes, "rope_theta", "norm_eps")
            if not getattr(self, name) > 0
        ]
        if not problems:
            if self.n_embd % self.n_head:
                problems.append(
                    f"model.n_embd={self.n_embd} is not divisible by model.n_head={self.n_head}; "
                    f"the nearest that is: {max(1, round(self.n_embd / self.n_head / 2)) * 2 * self.n_head}"
                )
            elif self.head_dim % 2:
                problems.append(
                    f"model.n_embd={self.n_embd} over model.n_head={self.n_head} gives heads of {self.head_dim}, "
                    "and rotary embeddings turn pairs: make n_embd / n_head even"
                )
            if self.n_head % self.n_kv_head:
                problems.append(
                    f"model.n_head={self.n_head} is not divisible by model.n_kv_head={self.n_kv_head}"
                )
            if not 0 <= self.eos_id < self.vocab_size:
                problems.append(
                    f"model.eos_id={self.eos_id} is outside the vocabulary of {self.vocab_size} tokens"
                )
        if not 0 <= self.dropout < 1:
            problems.append(f"model.dropout={self.dropout} is not in [0, 1)")
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.n_embd // self.n_head

    def num_params(self, embeddings: bool = True) -> int:
        """Exact number of parameters; without `embeddings`, the token tables (embedding and head) are left out."""
        assert self.n_kv_head is not None
        assert self.intermediate_size is not None
        attention = (
            2 * self.n_embd * (self.n_head + self.n_kv_head) * self.head_dim + 2 * self.head_dim
        )
        mlp = 3 * self.n_embd * self.intermediate_size
        body = self.n_layer * (attention + mlp + 2 * self.n_embd) + self.n_embd
        tables = 1 if self.tie_embeddings else 2
        return body + embeddings * tables * self.vocab_size * self.n_embd

    def flops_per_token(self) -> int:
        """Floating-point operations of one token, forward and backward, in a full window of block_size.

        6 N + 12 n_layer n_embd block_size, as in PaLM (arXiv:2204.02311, appendix B): N counts the weights that
        are multiplied, the head but not the embedding look-up, and attention counts as if it were not causal.
        """
        multiplied = self.num_params(embeddings=False) + self.vocab_size * self.n_embd
        return 6 * multiplied + 12 * self.n_layer * self.n_embd * self.block_size

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain types; `GPTConfig(**config.to_dict()) == config`."""
        return asdict(self)
