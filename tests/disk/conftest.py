from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from azllm_lightning.disk import lock


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """without_flock(errno): from now on flock fails with that error."""
    fcntl = pytest.importorskip("fcntl")

    def fail(number: int) -> None:
        def flock(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    monkeypatch.setattr(lock.Lock, "warned", False)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.05)
    return fail
