"""The share of a model's tales that hold a consistent plot.

    python benchmarks/consistent_plots.py [tales] [--samples 200] [--temperature 0.8] [--seed 0]

Tales are sampled from a run (a name, or a path as `load` takes it) without a prompt, and each is
read back by the grammar that the training text came from: a plot is consistent if one plot can be
followed to its end with the same players, narrator and tense. The table gives the share of each
verdict with its 95 % interval (Wilson), how much of a tale is consistent on average, and one tale
of each verdict that is not. Tales of the grammar itself come out at 100 %.
"""

from __future__ import annotations

import argparse
from collections import Counter

import machine

from azllm_lightning import load, sample
from azllm_lightning.azerbaijani.plots import CONSISTENT, REASONS, judge
from azllm_lightning.inference.pair_scores import wilson_interval

MEANING = {
    "consistent": "one plot, to its end, with the same players",
    "unfinished": "the beginning of one, cut off",
    "players": "one plot, but the players change",
    "order": "sentences of the tales that make no plot",
    "sentence": "has something that no tale says",
}
LONGEST = 400  # tokens; the longest tale has fewer


def main() -> None:
    """Sample, judge and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", nargs="?", default="tales", help="run name, run folder or checkpoint"
    )
    parser.add_argument("--samples", type=int, default=200, help="tales")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model, tokenizer = load(args.run)
    tales = sample(
        model,
        tokenizer,
        max_new_tokens=LONGEST,
        temperature=args.temperature,
        seed=args.seed,
        num_samples=args.samples,
    )
    about = machine.describe("the samples do not depend on it")
    machine.show({**about, "run": args.run, "temperature": str(args.temperature)})
    print(report(tales))


def report(tales: list[str]) -> str:
    """The shares of the verdicts as a Markdown table, with an example of each bad one."""
    verdicts = [judge(tale) for tale in tales]
    counts = Counter(verdict.reason for verdict in verdicts)
    lines = ["", "| verdict | share | 95 % interval | |", "|---|---|---|---|"]
    for reason in REASONS:
        low, high = wilson_interval(counts[reason], len(tales))
        share = counts[reason] / len(tales)
        lines.append(f"| {reason} | {share:.1%} | {low:.1%} to {high:.1%} | {MEANING[reason]} |")
    read = sum(verdict.share for verdict in verdicts) / len(verdicts)
    lines += ["", f"Up to the first contradiction, {read:.0%} of a tale on average."]
    for reason in REASONS:
        if reason != CONSISTENT and counts[reason]:
            at = next(i for i, verdict in enumerate(verdicts) if verdict.reason == reason)
            stopped = f", from: {verdicts[at].rest[:60]}" if verdicts[at].rest else ""
            lines += ["", f"{reason}{stopped}", "", f"> {tales[at]}".replace("\n", "\n> ")]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
