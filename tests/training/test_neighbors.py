"""Embeddings that start from the neighbors of tokens: what they are, and when a run has them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from azllm_lightning.config.compose import compose
from azllm_lightning.training import causal_lm, neighbors
from azllm_lightning.training.causal_lm import CausalLM
from azllm_lightning.training.neighbors import RANDOM_SCALE, counted, neighbor_embeddings
from azllm_lightning.training.sparse_rows import LONGEST_BAG, SparseRows

pytestmark = pytest.mark.numerics

Train = Callable[..., Path]
VOCAB = 12
NEIGHBORS = "init_embeddings=neighbors"


def text(seed: int = 0) -> Tensor:
    """Windows in which a token depends on the one before; token 11 is never seen."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(VOCAB - 1, VOCAB - 1, generator=generator) ** 4
    tokens = [torch.zeros(40, dtype=torch.long)]
    for _ in range(24):
        tokens.append(torch.multinomial(shares[tokens[-1]], 1, generator=generator).flatten())
    return torch.stack(tokens, dim=1)


def found(windows: Tensor, vocab: int = VOCAB, width: int = VOCAB, scale: float = 0.5) -> Tensor:
    return neighbor_embeddings(windows, vocab, width, scale, torch.Generator().manual_seed(1))


def information(windows: Tensor) -> Tensor:
    """The matrix of the definition, entry by entry: (V, 4 V), its rows of length 1."""
    blocks = []
    for distance in (1, 2):
        rows = windows.tolist()
        pairs = [pair for row in rows for pair in zip(row, row[distance:], strict=False)]
        both, first, second = (
            Counter(pairs),
            Counter(a for a, _ in pairs),
            Counter(b for _, b in pairs),
        )
        block = torch.zeros(VOCAB, VOCAB)
        for (a, b), n in both.items():
            value = math.log(n * len(pairs) / (first[a] * second[b]))
            block[a, b] = max(0.0, value) * n / (n + 1)
        blocks += [block, block.T]
    return F.normalize(torch.cat(blocks, dim=1), dim=1)


def test_the_products_of_all_embeddings_are_those_of_the_information() -> None:
    windows = text()
    expected = 0.25 * VOCAB * (information(windows) @ information(windows).T)
    embeddings = found(windows)
    seen = slice(0, VOCAB - 1)
    torch.testing.assert_close(
        (embeddings @ embeddings.T)[seen, seen], expected[seen, seen], atol=1e-4, rtol=1e-4
    )


def test_fewer_dimensions_keep_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = text()
    largest = torch.linalg.svdvals(information(windows))[:3].square().sum().item()
    for width in (3, 5):
        monkeypatch.setattr(neighbors, "MOST_DIMENSIONS", 3)
        embeddings = found(windows, width=width)[: VOCAB - 1]
        kept = embeddings.square().sum().item()
        assert kept == pytest.approx(0.25 * 3 * largest, rel=0.03)
        assert embeddings[:, 3:].count_nonzero() == 0


def test_tokens_with_the_same_neighbors_are_alike() -> None:
    """Each occurrence of token 3 becomes, by chance, token 11, which was not there."""
    windows = torch.cat([text(seed) for seed in range(20)])
    changed = (windows == 3) & (torch.rand(windows.shape, generator=torch.Generator()) < 0.5)
    both = found(windows.masked_fill(changed, 11))
    alike = F.normalize(both, dim=1) @ F.normalize(both, dim=1).T
    assert alike[3].argsort(descending=True)[:2].tolist() == [3, 11]


def test_a_token_without_neighbors_is_random() -> None:
    for windows in (text(), torch.full((2, 1), 5), torch.full((3, 9), 5)):
        embeddings = found(windows, width=64)
        assert embeddings.isfinite().all()
        assert 0.6 < embeddings[11].std() / RANDOM_SCALE < 1.4
        assert torch.equal(embeddings[11], found(windows, width=64, scale=0.1)[11])


def test_they_depend_on_text_and_seed_alone() -> None:
    windows = text()
    torch.rand(3)
    assert torch.equal(found(windows), found(windows))
    assert not torch.equal(found(windows), found(text(1)))
    other = neighbor_embeddings(windows, VOCAB, VOCAB, 0.5, torch.Generator().manual_seed(2))
    assert not torch.equal(found(windows), other)


@pytest.mark.parametrize("is_transposed", [False, True])
def test_sparse_rows_multiply_as_the_matrix_does(is_transposed: bool) -> None:
    sizes = torch.tensor([0, 3, 3 * LONGEST_BAG, 1])
    generator = torch.Generator().manual_seed(0)
    columns = torch.randint(7, (int(sizes.sum()),), generator=generator)
    entries = torch.rand(len(columns), generator=generator)
    matrix = torch.zeros(4, 7)
    matrix.index_put_((torch.repeat_interleave(sizes), columns), entries, accumulate=True)
    x = torch.rand(5, 7, generator=generator).T if is_transposed else torch.rand(7, 5)
    torch.testing.assert_close(SparseRows(columns, sizes, entries).times(x), matrix @ x)


@pytest.fixture
def first_tables(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The embeddings of each fit, as it begins."""
    tables: list[Tensor] = []

    def started(self: CausalLM) -> None:
        tables.append(self.net.model.embed_tokens.weight.detach().clone())
        starting(self)

    starting = CausalLM.on_train_start
    monkeypatch.setattr(CausalLM, "on_train_start", started)
    return tables


@pytest.mark.parametrize("tied", ["true", pytest.param("false", marks=pytest.mark.thorough)])
def test_a_run_starts_from_them_and_a_resume_does_not(
    tied: str,
    first_tables: list[Tensor],
    train_tiny: Train,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scales = []

    def noted(*args: Any) -> Tensor:
        scales.append(args[3])
        return neighbor_embeddings(*args)

    monkeypatch.setattr(causal_lm, "neighbor_embeddings", noted)
    shape = f"model.tie_embeddings={tied}"
    folder = train_tiny(shape, NEIGHBORS, "trainer.max_steps=2").absolute()
    train_tiny("ckpt_path=last", "trainer.max_steps=3", "init_embeddings=random")
    said = capsys.readouterr().err + caplog.text
    assert "init_embeddings: no effect, since ckpt_path gives all weights" in said
    train_tiny(shape, NEIGHBORS, "trainer.max_steps=1", f"init_from={folder}", "run_name=davam")
    assert scales == [neighbors.TIED_SCALE if tied == "true" else neighbors.SCALE]
    train_tiny(shape, NEIGHBORS, "trainer.max_steps=1", "run_name=again")
    train_tiny(shape, "trainer.max_steps=1", "run_name=random", "init_embeddings=random")
    counted_first, _, _, again, random = first_tables
    assert len(scales) == 2
    assert torch.equal(counted_first, again)
    assert not torch.equal(counted_first, random)
    assert random.std() == pytest.approx(RANDOM_SCALE, rel=0.1)


def test_only_the_first_pass_and_only_so_much_is_counted(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, int]] = []

    def noted(windows: Any) -> Tensor:
        result = counted(windows)
        seen.append((len(result), windows.num_windows, windows.block_size))
        return result

    monkeypatch.setattr(causal_lm, "counted", noted)
    train_tiny(NEIGHBORS, "trainer.max_steps=1")
    monkeypatch.setattr(neighbors, "MOST_TOKENS", 200)
    train_tiny(NEIGHBORS, "trainer.max_steps=1", "run_name=less")
    (everything, in_text, _), (less, _, block_size) = seen
    assert everything == in_text > less == 200 // block_size > 1


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"init_embeddings=glove .*neighbors, random"):
        compose(["init_embeddings=glove"])


@pytest.mark.parametrize("words", [1, 2, 5, 20])
def test_few_different_tokens_have_as_many_dimensions(words: int) -> None:
    generator = torch.Generator().manual_seed(words)
    chosen = torch.randperm(300, generator=generator)[:words]
    windows = chosen[torch.randint(words, (2874, 17), generator=generator)]
    embeddings = found(windows, vocab=300, width=256)
    assert embeddings.isfinite().all()
    assert (embeddings[chosen, words:] == 0).all() or words < 3
