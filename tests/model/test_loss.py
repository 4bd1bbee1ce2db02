import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from azllm_lightning.model.distillation import student_losses
from azllm_lightning.model.loss import minus_onehot, next_token_loss, token_nll

pytestmark = pytest.mark.numerics

TOKENS, WIDTH, VOCAB = 1100, 16, 100  # three chunks on a CPU, the last one short


@pytest.fixture
def batch():
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, requires_grad=True)
    weight = torch.randn(VOCAB, WIDTH, requires_grad=True)
    return hidden, weight, torch.randint(VOCAB, (TOKENS,))


def plain(hidden, weight, labels):
    return F.cross_entropy(F.linear(hidden, weight).float(), labels)


def test_equals_the_plain_loss(batch):
    hidden, weight, labels = batch
    expected = plain(*batch)
    loss = next_token_loss(*batch)
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected * 3, (hidden, weight))
    found = torch.autograd.grad(loss * 3, (hidden, weight))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    nll = token_nll(hidden, weight, labels)
    torch.testing.assert_close(nll, F.cross_entropy(hidden @ weight.t(), labels, reduction="none"))


@pytest.mark.parametrize("compiling", [False, True])
def test_the_one_hot_rows_are_subtracted(compiling, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    probabilities = torch.rand(5, 7)
    labels = torch.tensor([[6], [0], [3], [3], [1]])
    expected = probabilities - F.one_hot(labels[:, 0], 7)
    found = minus_onehot(probabilities.clone(), labels, torch.float32)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    found = minus_onehot(probabilities, labels, torch.float16)
    torch.testing.assert_close(found, expected.half(), rtol=0, atol=0)


def test_without_gradients(batch):
    with torch.no_grad():
        torch.testing.assert_close(next_token_loss(*batch), plain(*batch))


def test_certain_predictions_do_not_overflow(batch):
    hidden, weight, labels = batch
    loss = next_token_loss(hidden * 1000, weight, labels)
    loss.backward()
    torch.testing.assert_close(loss, plain(hidden * 1000, weight, labels))
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_scale_of_fp16_neither_overflows_nor_rounds(batch, dtype):
    hidden, weight, _ = batch
    wanted = torch.autograd.grad(plain(*batch), (hidden, weight))  # in fp32
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0, enabled=dtype == torch.float16)
    with torch.autocast("cpu", dtype):
        loss = next_token_loss(*batch)
        assert loss.item() == pytest.approx(plain(*batch).item(), rel=1e-5)
    optimizer = torch.optim.SGD([hidden, weight], lr=0.0)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for tensor, gradient in zip((hidden, weight), wanted, strict=True):
        error = (tensor.grad - gradient).norm() / gradient.norm()
        assert error < (2e-3 if dtype == torch.float16 else 2e-2)


class Held(TorchDispatchMode):
    """The most bytes that tensors made under it held at once."""

    def __init__(self):
        super().__init__()
        self.storages, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage.data_ptr()] = weakref.ref(storage), storage.nbytes()
        alive = {at: kept for at, kept in self.storages.items() if kept[0]() is not None}
        self.storages, self.peak = alive, max(self.peak, sum(size for _, size in alive.values()))
        return out


def test_peak_memory_against_the_plain_loss():
    """8,192 tokens over a vocabulary of 512: 17 MB of logits, of which the plain loss holds 3."""
    hidden, weight = (
        torch.randn(8192, 16, requires_grad=True),
        torch.randn(512, 16, requires_grad=True),
    )
    labels, peaks = torch.randint(512, (8192,)), []
    for loss in (plain, next_token_loss):
        with Held() as held:
            loss(hidden, weight, labels).backward()
        peaks.append(held.peak)
    assert peaks[0] > 2 * 8192 * 512 * 4
    assert peaks[1] < peaks[0] / 6


@pytest.mark.parametrize("is_student", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_a_chunk_is_gone_before_the_next_one(is_student):
    """One chunk of 256 tokens over a vocabulary of 20,000 is 20 MB in fp32."""
    hidden, weight = (
        torch.randn(1024, 2, requires_grad=True),
        torch.randn(20000, 2, requires_grad=True),
    )
    labels, chunk = torch.randint(20000, (1024,)), 256 * 20000 * 4
    with torch.autocast("cpu", dtype=torch.bfloat16), Held() as held:
        if is_student:
            student_losses(hidden, weight, labels, [(hidden.detach(), weight.detach())], 0.5)
        else:
            next_token_loss(hidden, weight, labels)
    assert held.peak < (4 if is_student else 2) * chunk


def test_the_head_is_converted_once(batch):
    class Conversions(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            is_conversion = func.overloadpacket is torch.ops.aten._to_copy
            Conversions.count += is_conversion and args[0].shape == (VOCAB, WIDTH)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        with Conversions():
            found = token_nll(*batch)
        expected = F.cross_entropy(F.linear(*batch[:2]).float(), batch[2], reduction="none")
    assert Conversions.count == 1
    torch.testing.assert_close(found, expected)


def test_the_logits_of_all_tokens_never_exist(batch):
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor):
                    Largest.numel = max(Largest.numel, tensor.numel())
            return out

    with Largest():
        next_token_loss(*batch).backward()
        with torch.no_grad():
            token_nll(*batch)
    assert VOCAB * 256 <= Largest.numel <= VOCAB * 512
