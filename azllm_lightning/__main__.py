"""`azllm VERB`, or `python -m azllm_lightning VERB`: runs a verb, or lists them."""

from __future__ import annotations

import sys
from importlib import import_module

from azllm_lightning.cli.entrance import typed_language, version_text
from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.cli.streams import make_streams_last

VERBS = {
    "train": "train a model, or resume a run",
    "prepare": "train a tokenizer and tokenize a text into shards",
    "generate": "generate text with a trained model",
    "chat": "write with a trained model in a local web page",
    "evaluate": "evaluate a model on text, or on grammar",
    "report": "show a run, or several, on a page that needs no server",
    "export": "export a model to transformers, llama.cpp or Ollama",
    "plan": "plan a run: which model, how long, and which loss to expect",
    "check": "measure what this machine can do, in about two minutes",
    "prove_resume": "prove on this machine that a resumed run equals an uninterrupted one",
    "runs": "list the runs: status, step, best val_loss, size on disk",
}


def main() -> None:
    """Run the verb in sys.argv, or list the verbs."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in VERBS:
        del sys.argv[1]
        # As with `python -m`, so that classes of the user's own are found; but the last, so that a
        # file there takes the place of no module.
        sys.path.append("")  # the current folder
        import_module(f"azllm_lightning.{module_of(verb)}").main()
        return
    make_streams_last(has_result=False)
    use_language(typed_language(sys.argv))
    if verb == "--version":
        print(version_text())
    elif verb in ("-h", "--help") or verb.startswith("lang="):
        print(overview())
    else:
        choices = ", ".join(VERBS)
        message = tr('unknown command "{verb}"; available: {choices}', verb=verb, choices=choices)
        print(tr("error: {message}", message=message), file=sys.stderr)
        sys.exit(2)


def module_of(verb: str) -> str:
    """The module that runs a verb, relative to the package."""
    return f"{verb}.__main__" if verb in ("report", "runs") else verb


def overview() -> str:
    """What `azllm` prints without a verb."""
    lines = [tr("azllm COMMAND [key=value ...]   (azllm COMMAND --help explains its settings)"), ""]
    return "\n".join([*lines, *(f"  {verb:<14}{tr(text)}" for verb, text in VERBS.items())])


if __name__ == "__main__":
    main()
