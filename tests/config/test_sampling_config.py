from __future__ import annotations

from typing import Any

import pytest

from azllm_lightning.config.compose import compose
from azllm_lightning.config.sampling import SamplingConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"temperature": -0.1}, "temperature=-0.1 must be at least 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 0.0}, r"top_p=0.0 must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"min_p": -0.1}, "min_p=-0.1 must be from 0 to 1"),
        ({"min_p": 1.1}, "min_p=1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be above 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty=inf"),
        ({"seed": -1}, "seed=-1 .* from 0 to 18446744073709551615"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**settings)


def test_generate_refuses_what_sampling_refuses() -> None:
    with pytest.raises(ValueError, match="top_k=0 must be at least 1"):
        compose(["top_k=0"], "generate")
    with pytest.raises(ValueError, match="num_samples=0 must be at least 1"):
        compose(["num_samples=0"], "generate")
    with pytest.raises(ValueError, match="temperature='isti' is not a number"):
        compose(["temperature=isti"], "generate")
