from __future__ import annotations

from pathlib import Path

import pytest
import torch

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.data.tokenizer import Tokenizer
from azllm_lightning.formats.huggingface import write_hf
from azllm_lightning.model.gpt import GPT

TEXTS = [
    "Şəhərdə yağış yağır, uşaqlar evə qaçır.",
    "İstanbuldan Bakı'ya, Bakı’nın küçələrinə: ISTI, ılıq, İlıq.",
    "1918-ci ildə 28 may; 3,14 və 10 %-dən çox",
    "Salam 👋🏽, dünya! 🇦🇿",
    "bir\niki\r\n\n\n  üç\t\tdörd   \n",
    "Go\u0308zəl s\u0327əhər, c\u0327o\u0308l, gu\u0308llər və I\u0307lıq ku\u0308lək",  # NFD
    "  başda iki boşluq, dədə-baba, ABCabc XXIəsr https://az.wikipedia.org/wiki/Bakı?a=b//",
    "Кириллица, 漢字, العربية",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Texts that a tokenizer or a reader of its files may get wrong."""
    return TEXTS


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, vocab_size=400)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def net(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> GPT:
    """No setting has its default, so that one that is left out is noticed."""
    return random_model(tokenizer, tied=request.param)


@pytest.fixture
def untied(tokenizer: Tokenizer) -> GPT:
    """The untied model alone, for tests to which the head does not matter."""
    return random_model(tokenizer, tied=False)


@pytest.fixture
def hf(net: GPT, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """The model as a Hugging Face folder."""
    folder = tmp_path / "köçürülmüş"
    folder.mkdir()
    write_hf(net, tokenizer, folder)
    return folder


def random_model(tokenizer: Tokenizer, tied: bool) -> GPT:
    """A model whose predictions are far from even, and never end-of-text."""
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        block_size=48,
        n_layer=2,
        n_head=4,
        n_kv_head=2,
        n_embd=64,
        intermediate_size=96,
        tie_embeddings=tied,
        rope_theta=5000.0,
        norm_eps=1e-4,
        dropout=0.1,
    )
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15) if parameter.dim() == 2 else parameter.uniform_(0.5, 1.5)
        model.lm_head.weight[0] = 0.0
    return model
