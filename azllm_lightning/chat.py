"""python -m azllm_lightning.chat: write with a model in a local web page."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from azllm_lightning.cli import entrance
from azllm_lightning.cli.messages import tr, use_language
from azllm_lightning.config.verbs import ChatConfig


def main() -> None:
    """Command-line entry point."""
    entrance.main("chat", chat, ChatConfig.from_mapping)


def chat(config: ChatConfig) -> None:
    """Serve the page until Ctrl+C.

    Raises ValueError if there is no such checkpoint, or the port cannot be used.
    """
    use_language(config.lang)
    from azllm_lightning.formats.load import load, origin, trained_on
    from azllm_lightning.inference.chat_server import ChatServer, Model
    from azllm_lightning.inference.device import best_device
    from azllm_lightning.runs.folder import find_checkpoint

    path = find_checkpoint(config.ckpt_path, config.run_name, Path(config.logs_dir))
    print(tr("from {path}", path=origin(path)), file=sys.stderr)
    network, tokenizer = load(path, best_device())
    model = Model(network, tokenizer, origin(path), trained_on(path) == "tales")
    with ChatServer(model, config) as server:
        print(tr("open {address} in a browser; Ctrl+C: stop", address=server.address), flush=True)
        if not server.is_local:
            message = tr(
                "host={host}: everyone who reaches this machine can use the model", host=config.host
            )
            print(message, file=sys.stderr)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
