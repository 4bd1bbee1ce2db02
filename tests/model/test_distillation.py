import pytest
import torch
import torch.nn.functional as F

from azllm_lightning.model.distillation import student_losses
from azllm_lightning.model.loss import next_token_loss

pytestmark = pytest.mark.numerics

TOKENS, WIDTH, VOCAB = 600, 16, 100  # three chunks on a CPU, the last one short


@pytest.fixture
def batch():
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, requires_grad=True)
    weight = torch.randn(VOCAB, WIDTH, requires_grad=True)
    return hidden, weight, torch.randint(VOCAB, (TOKENS,))


@pytest.fixture
def teachers():
    """Of two widths, neither of which is the student's."""
    torch.manual_seed(1)
    return [(torch.randn(TOKENS, width), torch.randn(VOCAB, width)) for width in (8, 24)]


def plain(hidden, weight, labels, teachers, share):
    """The same in PyTorch's own operations, with all logits in memory."""
    taught = torch.stack([F.softmax(states @ head.t(), dim=1) for states, head in teachers])
    target = share * taught.mean(0) + (1 - share) * F.one_hot(labels, len(weight))
    return F.cross_entropy(F.linear(hidden, weight).float(), target)


@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("count", [1, 2])
def test_equals_the_plain_loss(batch, teachers, share, count):
    chosen = teachers[:count]
    expected = plain(*batch, chosen, share)
    minimized, nll = student_losses(*batch, chosen, share)
    torch.testing.assert_close(minimized, expected)
    torch.testing.assert_close(nll, next_token_loss(*batch).detach())
    wanted = torch.autograd.grad(expected * 3, batch[:2])
    found = torch.autograd.grad(minimized * 3, batch[:2])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def test_only_what_is_minimized_has_a_gradient(batch, teachers):
    losses = student_losses(*batch, teachers, 0.5)
    once = torch.autograd.grad(losses[0], batch[:2], retain_graph=True)
    both = torch.autograd.grad(losses.sum(), batch[:2])
    torch.testing.assert_close(both, once, rtol=0, atol=0)


def test_a_share_of_nearly_0_is_the_loss_without_teachers(batch, teachers):
    minimized, _ = student_losses(*batch, teachers, 1e-9)
    torch.testing.assert_close(minimized, next_token_loss(*batch))


def test_half_precision_is_that_of_autocast(batch, teachers):
    expected = plain(*batch, teachers, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        minimized, _ = student_losses(*batch, teachers, 0.5)
    assert minimized.dtype == torch.float32
    torch.testing.assert_close(minimized, expected, rtol=2e-2, atol=0)
    for found, wanted in zip(
        torch.autograd.grad(minimized, batch[:2]),
        torch.autograd.grad(expected, batch[:2]),
        strict=True,
    ):
        assert found.dtype == wanted.dtype
        assert (found - wanted).norm() <= 2e-2 * wanted.norm()
