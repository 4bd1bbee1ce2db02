"""Generation speed compared with transformers and with our model without a cache, in turn.

    python benchmarks/generation.py [nano small10m course] [--rounds 3] [--tokens 256]

Each generates one text, greedily, in fp32, from the same random weights and prompt: `ours`
(generate_ids, which sample() and the generate command use; preparing the weights counts),
`no_cache` (our model, the complete text read again for each token, the head on the last position
only) and `transformers` (Qwen3ForCausalLM.generate with its KV cache). A ratio compares turns of
one round. The texts are compared token by token. `course` takes minutes per round without a cache.

Each token reads every matrix once, so below the table is the speed at which they are read, and the
speed at which this process reads memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import machine
import torch
import transformers

from azllm_lightning import compose
from azllm_lightning.config.model import GPTConfig, ModelConfig
from azllm_lightning.config.sampling import SamplingConfig
from azllm_lightning.inference.sampling import generate_ids
from azllm_lightning.model.gpt import GPT

VOCAB_SIZES = {"nano": 2048, "small10m": 8192, "course": 32_000, "smoke": 300}
PROMPT = list(range(1, 17))


def main() -> None:
    """Measure and print a table for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", default=[], help="default: nano small10m")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--tokens", type=int, default=256, help="new tokens per turn")
    args = parser.parse_args()
    if unknown := set(args.sizes) - set(VOCAB_SIZES):
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(VOCAB_SIZES)}")
    about = machine.describe("fp32, the same for all")
    machine.show({**about, "peer": f"transformers {transformers.__version__}"})
    for size in args.sizes or ["nano", "small10m"]:
        compare(size, args.rounds, args.tokens)


def compare(size: str, rounds: int, tokens: int) -> None:
    """Run the three in turn and print their speeds."""
    model, theirs = models(size, len(PROMPT) + tokens)
    writers: dict[str, Callable[[int], list[int]]] = {
        "ours": lambda n: ours(model, n),
        "no_cache": lambda n: no_cache(model, n),
        "transformers": lambda n: by_transformers(theirs, n),
    }
    for write in writers.values():
        write(4)
    rates: dict[str, list[float]] = {name: [] for name in writers}
    texts: dict[str, list[int]] = {}
    for _ in range(rounds):
        for name, write in writers.items():
            start = time.perf_counter()
            texts[name] = write(tokens)
            rates[name].append(tokens / (time.perf_counter() - start))
    shape = model.config
    size_in_words = f"{shape.num_params() / 1e6:.1f} M parameters"
    print(f"\n{size}: {size_in_words}, {tokens} new tokens, {rounds} rounds")
    print(f"{'tokens/s: min':>28}   median      max   ours / it: min   median      max   greedy")
    for name, found in rates.items():
        ratios = [mine / its for mine, its in zip(rates["ours"], found, strict=True)]
        cells = f"{low_middle_high(found, '.1f')}{'':>7}{low_middle_high(ratios, '.2f')}"
        same = agreement(texts["ours"], texts[name])
        print(f"{name:<14}{'':>5}{cells}   {same}", flush=True)
    weights = shape.num_params(embeddings=False) + shape.vocab_size * shape.n_embd
    speed = 4 * weights * statistics.median(rates["ours"]) / 1e9
    one, every = (memory_bandwidth(threads) for threads in (1, torch.get_num_threads()))
    print(
        f"ours reads its matrices at {speed:.1f} GB/s; a sum over 512 MB reads {one:.1f} GB/s "
        f"on one thread, {every:.1f} GB/s on all"
    )


def low_middle_high(values: list[float], form: str) -> str:
    """Smallest, median and largest."""
    figures = (min(values), statistics.median(values), max(values))
    return "".join(f"{figure:>9{form}}" for figure in figures)


def sizes_of(size: str) -> ModelConfig:
    """The sizes of model=`size`; of "smoke" some that take no time."""
    if size == "smoke":
        return ModelConfig(n_layer=2, n_head=2, n_embd=32)
    return compose([f"model={size}"]).model


def models(size: str, block_size: int) -> tuple[GPT, transformers.Qwen3ForCausalLM]:
    """Two models with the same random weights, far enough from their initial values to write
    different tokens; end of text never comes.
    """
    config: GPTConfig = sizes_of(size).for_data(VOCAB_SIZES[size], block_size, eos_id=0)
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=1.5 * parameter.shape[1] ** -0.5)
        model.lm_head.weight[config.eos_id] = 0.0
    theirs = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.n_embd,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.n_kv_head,
            head_dim=config.head_dim,
            max_position_embeddings=block_size,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    return model, theirs


def ours(model: GPT, tokens: int) -> list[int]:
    """The way `sample` does it."""
    steps = generate_ids(model, [PROMPT], SamplingConfig(max_new_tokens=tokens, temperature=0))
    return [token for (token,) in steps if token is not None]


@torch.inference_mode()
def no_cache(model: GPT, tokens: int) -> list[int]:
    """Forward passes over the complete text, the head on the last position only."""
    text = torch.tensor([PROMPT])
    for _ in range(tokens):
        token = model.lm_head(model.hidden(text)[:, -1]).argmax(dim=-1, keepdim=True)
        text = torch.cat((text, token), dim=1)
    return text[0, len(PROMPT) :].tolist()


def by_transformers(model: transformers.Qwen3ForCausalLM, tokens: int) -> list[int]:
    """The way their documentation does it."""
    text = torch.tensor([PROMPT])
    out = model.generate(
        text, attention_mask=torch.ones_like(text), max_new_tokens=tokens, do_sample=False
    )
    return out[0, len(PROMPT) :].tolist()


def agreement(expected: list[int], found: list[int]) -> str:
    """Whether two texts are the same, and where they begin to differ."""
    if found == expected:
        return "equal"
    pairs = enumerate(zip(expected, found, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), len(found))
    return f"DIFFERS from token {first}"


def memory_bandwidth(threads: int) -> float:
    """GB/s of the fastest of ten sums over 512 MB."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    memory = torch.ones(2**27)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        memory.sum()
        best = min(best, time.perf_counter() - start)
    torch.set_num_threads(before)
    return memory.numel() * 4 / best / 1e9


if __name__ == "__main__":
    main()
