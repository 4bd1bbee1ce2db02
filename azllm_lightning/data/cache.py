"""Where prepared text and downloads are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$AZLLM_DATA_DIR, else the user's cache folder of this system."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("AZLLM_DATA_DIR")
    if chosen:
        return Path(chosen).expanduser()
    return user_cache_path("azllm-lightning", appauthor=False)
