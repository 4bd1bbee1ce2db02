"""Whether torch.compile works here: it compiles a small function, forward and backward."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from azllm_lightning.cli.messages import tr
from azllm_lightning.training.hardware import missing_for_compile
from azllm_lightning.training.measuring import check_compiled


def compile_small_function(device: str) -> dict[str, Any]:
    """Compile with an empty cache, run forward and backward, and compare with eager mode.

    Called in a process of its own (`isolated`). Returns the seconds that it took. Raises ValueError
    with the reason if torch.compile does not work.
    """
    if missing := missing_for_compile(device):
        raise ValueError(tr("torch.compile needs {missing}", missing=missing))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        os.environ["TRITON_CACHE_DIR"] = cache
        return {"compile_seconds": check_compiled(device)}
