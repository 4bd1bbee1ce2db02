"""Starts `session.worker` so that Ctrl+C while it imports PyTorch ends it without a traceback."""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from azllm_lightning.session.worker import main

    main()
