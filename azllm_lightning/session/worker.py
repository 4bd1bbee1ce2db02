"""A process that `session.supervisor` starts for one device.

It gets its settings as a line of JSON on standard input. When that closes, the supervisor is dead.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from azllm_lightning.cli.entrance import EXIT_RESUMABLE, EXIT_USAGE, Resumable
from azllm_lightning.cli.streams import make_streams_last
from azllm_lightning.config.run import RunConfig
from azllm_lightning.session.outcome import Outcome, PeerLost, SmallerBatch
from azllm_lightning.session.resolve import Located, Source
from azllm_lightning.session.session import run_as_one_of
from azllm_lightning.training.processes import Elsewhere, Notes, launched


def main() -> None:
    """Train, leave the outcome to the supervisor, and exit with the code that it would have had."""
    make_streams_last(has_result=False)
    config, located = read_settings(sys.stdin.buffer.readline())
    threading.Thread(target=_stop_without_supervisor, daemon=True).start()
    outcome, code = _train(config, located)
    Notes().write(f"outcome/{os.environ['RANK']}", json.dumps(asdict(outcome)))
    sys.exit(code)


def read_settings(line: bytes) -> tuple[RunConfig, Located | None]:
    """The settings as they were typed, and what the supervisor found out about them."""
    values = json.loads(line)
    typed = _config(values["typed"])
    if values["located"] is None:
        return typed, None
    source = values["source"]
    if source is not None:
        source = Source(**{**source, "path": Path(source["path"])})
    return typed, Located(_config(values["located"]), source)


def _config(values: dict[str, Any]) -> RunConfig:
    return RunConfig.from_mapping(values, values["overrides"])


def _train(config: RunConfig, located: Located | None) -> tuple[Outcome, int]:
    place = launched()
    assert place is not None
    try:
        return Outcome("done", str(run_as_one_of(config, place, located))), 0
    except SmallerBatch:
        return Outcome("memory"), EXIT_RESUMABLE
    except PeerLost as lost:
        return Outcome("lost", lost.reason), lost.exit_code
    except Resumable as stop:
        return Outcome("stopped", stop.message), EXIT_RESUMABLE
    except Elsewhere as end:
        return Outcome("lost"), int(str(end.code))
    except (ValueError, OSError) as error:
        if os.environ.get("AZLLM_TRACEBACK"):
            traceback.print_exc()
        return Outcome("error", str(error)), EXIT_USAGE
    except Exception:
        return Outcome("crash", traceback.format_exc()), 1


def _stop_without_supervisor() -> None:
    # Not sys.stdin, which a thread that reads keeps locked at the end of the program.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
