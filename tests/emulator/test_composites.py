"""Functions that PyTorch builds from several ops: on the device, equal, with gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import rnn
from torch.utils._python_dispatch import TorchDispatchMode

X = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
ROW = X[0].clone()
IMAGES = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
COMPOSITES = {
    "vander": (lambda x: torch.vander(x.detach()), ROW),
    "vander_increasing": (lambda x: torch.vander(x.detach(), 3, increasing=True), ROW),
    "vander_of_one_column": (lambda x: torch.vander(x, 1), ROW),
    "linalg_vander": (torch.linalg.vander, ROW),
    "pad_sequence": (lambda x: rnn.pad_sequence([x[:2], x, x[:3]], padding_value=2.0), X),
    "pad_sequence_batch_first": (lambda x: rnn.pad_sequence([x[:2], x], batch_first=True), X),
    "pad_sequence_left": (lambda x: rnn.pad_sequence([x[:2], x], padding_side="left"), X),
    "unpad_sequence": (
        lambda x: rnn.unpad_sequence(rnn.pad_sequence([x[:2], x]), torch.tensor([2, 4])),
        X,
    ),
    "pack_sequence": (lambda x: rnn.pad_packed_sequence(rnn.pack_sequence([x, x[:1]]))[0], X),
    "pack_with_total_length": (
        lambda x: rnn.pad_packed_sequence(
            rnn.pack_sequence([x[:1], x], enforce_sorted=False),
            batch_first=True,
            padding_value=-1.0,
            total_length=6,
        )[0],
        X,
    ),
    "dropout1d": (lambda x: functional.dropout1d(x, 0.5, True), IMAGES[0]),
    "dropout2d": (lambda x: functional.dropout2d(x, 0.3, True), IMAGES),
    "dropout2d_in_place": (lambda x: functional.dropout2d(x * 1, 0.3, True, True), IMAGES),
    "feature_alpha_dropout": (lambda x: functional.feature_alpha_dropout(x, 0.4, True), IMAGES),
    "feature_alpha_dropout_in_place": (
        lambda x: functional.feature_alpha_dropout(x * 1, 0.4, True, True),
        IMAGES,
    ),
    "alpha_dropout": (lambda x: functional.alpha_dropout(x, 0.4, True), X),
    "no_dropout2d": (lambda x: functional.dropout2d(x, 0.3, False), IMAGES),
    "all_dropped": (lambda x: functional.dropout2d(x, 1.0, True), IMAGES),
    "gumbel_softmax": (lambda x: functional.gumbel_softmax(x, hard=True), X),
    "ctc_loss": (
        lambda x: functional.ctc_loss(
            x.log_softmax(-1).unsqueeze(1),
            torch.tensor([[1, 2]]).to(x.device),
            torch.tensor([4]),
            torch.tensor([2]),
        ),
        X,
    ),
    "embedding_bag": (
        lambda x: functional.embedding_bag(torch.tensor([[1, 2], [2, 3]]).to(x.device), x),
        X,
    ),
    "block_diag": (lambda x: torch.block_diag(x, x), X),
    "combinations": (torch.combinations, ROW),
    "cartesian_prod": (lambda x: torch.cartesian_prod(x, x), ROW),
    "stft_and_back": (
        lambda x: torch.istft(
            torch.stft(x, 8, window=torch.hann_window(8).to(x.device), return_complex=True),
            8,
            window=torch.hann_window(8).to(x.device),
        ),
        torch.linspace(-1, 1, 32),
    ),
    "normal_log_prob": (lambda x: torch.distributions.Normal(x, x.exp()).log_prob(x * 2), X),
    "dirichlet_sample": (lambda x: torch.distributions.Dirichlet(x.exp()).rsample(), X),
    "categorical_sample": (lambda x: torch.distributions.Categorical(logits=x).sample(), X),
    "cdist": (lambda x: torch.cdist(x, x * 2), X),
    "chain_matmul": (lambda x: torch.linalg.multi_dot([x, x, x]), X),
    "interpolate": (lambda x: functional.interpolate(x, scale_factor=2, mode="bicubic"), IMAGES),
}


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in flat(item)]


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_composite_equals_the_cpus(name):
    function, example = COMPOSITES[name]
    results = []
    for place in ("cpu", "hpu"):
        x = example.to(place).requires_grad_()
        torch.manual_seed(5)
        outputs = flat(function(x))
        weights = [torch.linspace(0, 1, out.numel()).reshape(out.shape) for out in outputs]
        loss = sum((o * w.to(place)).sum() for o, w in zip(outputs, weights, strict=True))
        grads = [torch.autograd.grad(loss, x)[0]] if loss.requires_grad else []
        results.append([*outputs, *grads])
    for expected, found in zip(*results, strict=True):
        assert found.device.type == "hpu"
        assert found.requires_grad == expected.requires_grad
        assert found.stride() == expected.stride()
        assert torch.equal(found.detach().cpu(), expected.detach())


@pytest.mark.parametrize("name", ["dropout2d", "feature_alpha_dropout", "alpha_dropout"])
def test_dropout_draws_from_the_devices_generator_and_anew_at_each_replay(name):
    import habana_frameworks.torch as ht

    function, example = COMPOSITES[name]
    x = example.to("hpu")
    on_host = torch.get_rng_state()
    function(x)
    assert torch.equal(torch.get_rng_state(), on_host)
    graph = ht.hpu.HPUGraph()
    with torch.no_grad(), ht.hpu.graph(graph):
        out = function(x)
    drawn = set()
    for _ in range(12):
        graph.replay()
        drawn.add(tuple((out == out.flatten()[0]).flatten().tolist()))
    assert len(drawn) > 1


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: torch.vander(x), RuntimeError, "one-dimensional"),
        (
            lambda x: torch.vander(x[0].requires_grad_()).sum().backward(),
            RuntimeError,
            "modified by an inplace operation",
        ),
        (lambda x: functional.dropout2d(x, 1.5), ValueError, "between 0 and 1"),
        (lambda x: torch.feature_dropout(x[0], 0.5, True), RuntimeError, "at least 2 dimensions"),
        (lambda x: rnn.pad_sequence([x, x[:, :2]]), RuntimeError, "must match"),
        (
            lambda x: rnn.pad_packed_sequence(rnn.pack_sequence([x]), total_length=1),
            ValueError,
            "Expected total_length to be at least the length of the longest sequence",
        ),
    ],
)
def test_errors_are_pytorchs(call, error, text):
    for place in ("cpu", "hpu"):
        with pytest.raises(error, match=text):
            call(X.to(place))


def test_spectral_norms_and_orthogonal_weights():
    for wrap in (
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
        nn.utils.parametrizations.weight_norm,
    ):
        torch.manual_seed(0)
        host = wrap(nn.Linear(4, 4))
        torch.manual_seed(0)
        device = wrap(nn.Linear(4, 4)).to("hpu")
        expected, found = host(X), device(X.to("hpu"))
        assert found.device.type == "hpu"
        torch.testing.assert_close(found.cpu(), expected, rtol=1.3e-6, atol=1e-6)


def test_one_hot_under_a_dispatch_mode_stays_on_the_device():
    """As in every capture of our engine, whose guard is such a mode and keeps host tensors."""

    class Holding(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.held: list[object] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.held.append(func(*args, **(kwargs or {})))
            return self.held[-1]

    labels = torch.tensor([[0, 2], [1, 1]])
    with Holding():
        found = functional.one_hot(labels.to("hpu"), 4)
    assert found.device.type == "hpu"
    assert torch.equal(found.cpu(), functional.one_hot(labels, 4))
    assert found.stride() == functional.one_hot(labels, 4).stride()
