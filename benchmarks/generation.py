"""Tokens per second of writing, beside the same model without a cache and beside transformers, in turn.

    python benchmarks/generation.py [nano small10m course] [--rounds 3] [--tokens 256]

Three write one text each, greedily, from the same random weights and prompt: `ours` (generate_ids, which sample() and
the generate command use; laying out the weights counts), `no_cache` (our model, the whole text read anew for each
token, the head on the last only) and `transformers` (Qwen3ForCausalLM.generate with its KV cache). A ratio is one of
the same round. What they write is compared token by token. `course` takes minutes a round without a cache.

A token reads every matrix once, so below the table stands how fast that is, and how fast this process reads memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import machine
import torch
import transformers
import yaml

from azllm_lightning.config.model import GPTConfig
from azllm_lightning.inference.sampling import SamplingConfig, generate_ids
from azllm_lightning.model.gpt import GPT

VOCAB_SIZES = {"nano": 2048, "small10m": 8192, "course": 32_000}  # shapes are those of conf/model
PROMPT = list(range(1, 17))


def main() -> None:
    """Measure and print a table for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", default=[], help="default: nano small10m")
    parser.add_argument("--rounds", type=int, default=3, help="times that each has its turn")
    parser.add_argument("--tokens", type=int, default=256, help="new tokens of a turn")
    args = parser.parse_args()
    if unknown := set(args.sizes) - set(VOCAB_SIZES):
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(VOCAB_SIZES)}")
    about = {
        **machine.describe(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    about["threads"] = str(torch.get_num_threads())
    print("\n".join(f"{key:<13}{value}" for key, value in about.items()), flush=True)
    for size in args.sizes or ["nano", "small10m"]:
        compare(size, args.rounds, args.tokens)


def compare(size: str, rounds: int, tokens: int) -> None:
    """Run the three in turn and print what they reach."""
    model, theirs = models(size, len(PROMPT) + tokens)
    writers: dict[str, Callable[[int], list[int]]] = {
        "ours": lambda n: ours(model, n),
        "no_cache": lambda n: no_cache(model, n),
        "transformers": lambda n: by_transformers(theirs, n),
    }
    for write in writers.values():
        write(4)
    rates: dict[str, list[float]] = {name: [] for name in writers}
    written: dict[str, list[int]] = {}
    for _ in range(rounds):
        for name, write in writers.items():
            start = time.perf_counter()
            written[name] = write(tokens)
            rates[name].append(tokens / (time.perf_counter() - start))
    print(
        f"\n{size}: {model.config.num_params() / 1e6:.1f} M parameters, {tokens} new tokens, {rounds} rounds"
    )
    print(
        f"{'':<14}{'tokens/s: min':>14}{'median':>9}{'max':>9}   ours / it: min   median      max   greedy"
    )
    for name, found in rates.items():
        ratios = [mine / its for mine, its in zip(rates["ours"], found, strict=True)]
        figures = "".join(f"{pick(found):>9.1f}" for pick in (min, statistics.median, max))
        spread = "".join(f"{pick(ratios):>9.2f}" for pick in (min, statistics.median, max))
        print(
            f"{name:<14}{'':>5}{figures}{'':>7}{spread}   {agreement(written['ours'], written[name])}",
            flush=True,
        )
    read = 4 * (
        model.config.num_params(embeddings=False) + model.config.vocab_size * model.config.n_embd
    )
    print(
        f"ours reads its matrices at {read * statistics.median(rates['ours']) / 1e9:.1f} GB/s; "
        f"a sum over 512 MB reads {memory_bandwidth(1):.1f} GB/s on one thread, "
        f"{memory_bandwidth(torch.get_num_threads()):.1f} GB/s on all"
    )


def models(size: str, block_size: int) -> tuple[GPT, transformers.Qwen3ForCausalLM]:
    """The same random weights twice, far enough from their start to write various tokens; end of text never comes."""
    sizes = yaml.safe_load(
        (machine.ROOT / "conf" / "model" / f"{size}.yaml").read_text(encoding="utf-8")
    )
    config = GPTConfig(vocab_size=VOCAB_SIZES[size], block_size=block_size, **sizes)
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
    """As `sample` does."""
    steps = generate_ids(model, [PROMPT], SamplingConfig(max_new_tokens=tokens, temperature=0))
    return [token for (token,) in steps if token is not None]


@torch.inference_mode()
def no_cache(model: GPT, tokens: int) -> list[int]:
    """Whole forward passes, the head on the last position only."""
    text = torch.tensor([PROMPT])
    for _ in range(tokens):
        token = model.lm_head(model.hidden(text)[:, -1]).argmax(dim=-1, keepdim=True)
        text = torch.cat((text, token), dim=1)
    return text[0, len(PROMPT) :].tolist()


def by_transformers(model: transformers.Qwen3ForCausalLM, tokens: int) -> list[int]:
    """As their documentation does."""
    text = torch.tensor([PROMPT])
    out = model.generate(
        text, attention_mask=torch.ones_like(text), max_new_tokens=tokens, do_sample=False
    )
    return out[0, len(PROMPT) :].tolist()


def agreement(expected: list[int], found: list[int]) -> str:
    """Whether two texts are the same, and where not."""
    if found == expected:
        return "equal"
    same = next(
        (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), len(found)
    )
    return f"DIFFERS from token {same}"


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
