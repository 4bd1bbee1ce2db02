import pytest
import torch

from azllm_lightning.model.config import GPTConfig
from azllm_lightning.model.gpt import GPT


@pytest.fixture
def config() -> GPTConfig:
    return GPTConfig(vocab_size=300, block_size=32, n_layer=2, n_head=4, n_kv_head=2, n_embd=64)


@pytest.fixture
def model(config) -> GPT:
    """A small model whose weights are far from their start, so that its predictions are far from even."""
    torch.manual_seed(0)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.15)
            else:
                parameter.uniform_(0.5, 1.5)
    return model
