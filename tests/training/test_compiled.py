"""What torch.compile gets, where its code is kept, and when trainer.compile=auto uses it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime import cache_dir_utils

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.data.cache import cache_folder
from azllm_lightning.model.gpt import GPT, Block
from azllm_lightning.training import compiled, hardware

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def test_code_is_kept_with_the_prepared_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE, raising=False)
    cache_dir_utils.cache_dir()  # as the import of Lightning does
    compiled.keep_compiled_code()
    assert Path(os.environ[CACHE]).parent == cache_folder()
    monkeypatch.setenv(CACHE, "of_the_user")
    compiled.keep_compiled_code()
    assert os.environ[CACHE] == "of_the_user"


def test_layers_on_a_cpu_and_all_on_a_gpu(
    config: GPTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, "unused")
    seen: list[type] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: seen.append(type(self)))
    net = GPT(replace(config, n_layer=2))
    compiled.compile_network(net, "cpu")
    assert seen == [Block, Block]
    seen.clear()
    compiled.compile_network(net, "cuda")
    assert seen == [GPT]
    seen.clear()
    compiled.compile_network(net, "cuda", is_student=True)  # its loss is not that of the network
    assert seen == [Block, Block]
    seen.clear()
    compiled.compile_network(net, "cuda", devices=2)
    assert seen == [Block, Block]


@pytest.mark.slow
def test_one_code_for_all_layers_and_none_in_a_validation(config: GPTConfig) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    net = GPT(replace(config, n_layer=3))
    for layer in net.model.layers:
        layer.compile(backend=backend)
    tokens = torch.zeros(2, config.block_size, dtype=torch.long)
    with compiled.uncompiled():
        net(tokens)
    assert not graphs
    net(tokens, tokens).backward()
    assert len(graphs) == 1
    torch.compiler.reset()


@pytest.mark.parametrize(("gain", "pays"), [(1.5, True), (1.0, False)])
def test_auto_compiles_what_gains(
    config: GPTConfig, gain: float, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "layer_gain", lambda *args: gain)
    assert compiled.pays(config, 2, "32-true") is pays


@pytest.mark.slow
@pytest.mark.skipif(bool(hardware.missing_for_compile("cpu")), reason="there is no compiler")
def test_the_gain_is_measured_and_the_code_kept(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    state = torch.get_rng_state()
    assert compiled.layer_gain(config, 2, "32-true") > 0
    assert torch.equal(torch.get_rng_state(), state)
    counters = torch._dynamo.utils.counters["aot_autograd"]
    assert counters["autograd_cache_saved"] == 1
    torch.compiler.reset()
    counters.clear()
    net = GPT(replace(config, n_layer=2))
    compiled.compile_network(net, "cpu")
    tokens = torch.zeros(2, config.block_size, dtype=torch.long)
    net(tokens, tokens).backward()
    assert (counters["autograd_cache_hit"], counters["autograd_cache_miss"]) == (1, 0)
    torch.compiler.reset()
