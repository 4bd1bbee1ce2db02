"""Embeddings that start from the neighbors of each token in the text, rather than at random.

Tokens that stand next to the same tokens are alike. The leading singular vectors of their pointwise
mutual information with what stands next to them are word vectors about as good as those of word2vec
(Levy, Goldberg and Dagan 2015, doi:10.1162/tacl_a_00134), and counting takes seconds. A model that
starts from them has less to learn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from azllm_lightning.data.datamodule import TrainingWindows
from azllm_lightning.training.sparse_rows import SparseRows

DISTANCES = (1, 2)
"""How far apart neighbors are, in tokens. Those before a token and those after it are counted
apart."""

MOST_TOKENS = 4_000_000
"""Tokens of the text that are counted, which takes seconds."""

MOST_DIMENSIONS = 256
"""Singular vectors; with a greater width, the other entries of an embedding start at zero."""

ITERATIONS = 4
"""Of subspace iteration: the vectors need not be exact."""

SCALE = 0.8
TIED_SCALE = 0.4
"""Of embeddings that are the rows of the head as well: the first predictions must not be sure."""

RANDOM_SCALE = 0.02
"""That of a token without neighbors, as of random embeddings."""


def counted(windows: TrainingWindows) -> Tensor:
    """The windows of a text that are counted, (N, T + 1): those of its first pass, up to
    MOST_TOKENS.
    """
    number = min(windows.num_windows, max(1, MOST_TOKENS // windows.block_size))
    return windows.__getitems__(list(range(number)))


def neighbor_embeddings(
    windows: Tensor, vocab_size: int, width: int, scale: float, generator: torch.Generator
) -> Tensor:
    """Embeddings (V, C) of tokens by their neighbors in `windows`, token ids (N, T).

    `scale` is the root mean square of an embedding that is all in the singular vectors.
    """
    found = [_information(windows, distance, vocab_size) for distance in DISTANCES]
    squares = torch.zeros(vocab_size)
    for first, second, information in found:
        squares.index_add_(0, first, information.square())
        squares.index_add_(0, second, information.square())
    has_neighbors = (squares > 0).unsqueeze(1)
    inverse = torch.where(has_neighbors, squares.unsqueeze(1).rsqrt(), 0.0)
    matrices = []
    for first, second, information in found:
        after = _sparse(first, second, information, vocab_size)
        before = _sparse(second, first, information, vocab_size)
        matrices.append((after, before))

    def gram(x: Tensor) -> Tensor:
        """A @ A.T @ x, where a row of A has a token's information about all its neighbors, and
        length 1: (V, C) to (V, C).
        """
        x = x * inverse
        total = torch.zeros_like(x)
        for after, before in matrices:
            total += after.times(before.times(x)) + before.times(after.times(x))
        return total * inverse

    most = min(width, vocab_size, MOST_DIMENSIONS)
    # With more than there can be, zero is an eigenvalue many times, which LAPACK may not solve.
    dimensions = min(most, int(has_neighbors.sum()))
    basis = torch.randn(vocab_size, dimensions, generator=generator)
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(gram(basis)).Q
    squared, rotation = torch.linalg.eigh(basis.T @ gram(basis))
    vectors = basis @ rotation * squared.clamp_min(0).sqrt()  # a row's length is at most 1
    embeddings = torch.zeros(vocab_size, width)
    embeddings[:, :dimensions] = scale * math.sqrt(most) * vectors
    random = RANDOM_SCALE * torch.randn(vocab_size, width, generator=generator)
    return torch.where(has_neighbors, embeddings, random)


def _information(windows: Tensor, distance: int, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of tokens, the second `distance` after the first, and their pointwise mutual
    information where it is positive.

    That of a pair seen n times is multiplied by n / (n + 1) (Pantel and Lin 2002): by chance, that
    of rare pairs is large.
    """
    first, second = windows[:, :-distance].flatten(), windows[:, distance:].flatten()
    pairs, counts = torch.unique(first * vocab_size + second, return_counts=True)
    rows, columns = pairs // vocab_size, pairs % vocab_size
    of_first, of_second = (_counts(x, vocab_size) for x in (first, second))
    n = counts.double()
    information = (n * len(first) / (of_first[rows] * of_second[columns])).log()
    weighted = (information * n / (n + 1)).float()
    kept = weighted > 0
    return rows[kept], columns[kept], weighted[kept]


def _sparse(rows: Tensor, columns: Tensor, entries: Tensor, size: int) -> SparseRows:
    """The matrix (size, size) of these entries."""
    order = torch.argsort(rows, stable=True)
    return SparseRows(columns[order], _counts(rows, size), entries[order])


def _counts(tokens: Tensor, vocab_size: int) -> Tensor:
    """How often each token is among `tokens`: (V,)."""
    return torch.zeros(vocab_size, dtype=torch.long).index_add_(0, tokens, torch.ones_like(tokens))
