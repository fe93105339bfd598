"""Recurrent layers and transformer encoders: outputs and gradients equal the CPU's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

RECURRENT = {
    "lstm": lambda: nn.LSTM(4, 6),
    "lstm_bidirectional": lambda: nn.LSTM(4, 6, num_layers=2, bidirectional=True),
    "lstm_projected": lambda: nn.LSTM(4, 6, num_layers=2, proj_size=3),
    "lstm_projected_bidirectional": lambda: nn.LSTM(4, 6, proj_size=3, bidirectional=True),
    "lstm_without_bias": lambda: nn.LSTM(4, 6, bias=False),
    "gru": lambda: nn.GRU(4, 6),
    "gru_bidirectional": lambda: nn.GRU(4, 6, num_layers=2, bidirectional=True),
    "rnn": lambda: nn.RNN(4, 6, nonlinearity="relu"),
}
X_TBD = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))  # time, batch, features


def both(make: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    host = make()
    return host, copy.deepcopy(host).to("hpu")


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in flat(item)]


def assert_equal(expected: Any, found: Any) -> None:
    for a, b in zip(flat(expected), flat(found), strict=True):
        assert b.device.type == "hpu"
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        assert torch.equal(a.detach(), b.detach().cpu())


def assert_gradients_equal(host: nn.Module, device: nn.Module, expected: Any, found: Any) -> None:
    for outputs in (expected, found):
        sum((tensor**2).sum() for tensor in flat(outputs) if tensor.requires_grad).backward()
    assert_equal([p.grad for p in host.parameters()], [p.grad for p in device.parameters()])


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("is_training", [False, True])
def test_recurrent_layers(name, is_training):
    host, device = both(RECURRENT[name])
    host.train(is_training), device.train(is_training)
    x, x_hpu = X_TBD.clone().requires_grad_(), X_TBD.to("hpu").requires_grad_()
    expected, found = host(x), device(x_hpu)
    assert_equal(expected, found)
    assert_gradients_equal(host, device, expected, found)
    assert_equal(x.grad, x_hpu.grad)


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("is_sorted", [True, False])
def test_recurrent_layers_on_packed_sequences(name, is_sorted):
    host, device = both(RECURRENT[name])
    lengths = torch.tensor([5, 3, 1] if is_sorted else [3, 5, 1])
    results = []
    for module, place in ((host, "cpu"), (device, "hpu")):
        packed = rnn.pack_padded_sequence(X_TBD.to(place), lengths, enforce_sorted=is_sorted)
        out, state = module(packed)
        padded, found_lengths = rnn.pad_packed_sequence(out)
        assert found_lengths.tolist() == lengths.tolist()
        assert type(found_lengths) is Tensor
        results.append((padded, state))
    assert_equal(*results)
    assert_gradients_equal(host, device, *results)


def test_recurrent_layers_go_on_from_a_state_and_in_batch_first_order():
    host, device = both(lambda: nn.LSTM(4, 6, batch_first=True))
    expected, state = host(X_TBD.transpose(0, 1))
    found, state_hpu = device(X_TBD.to("hpu").transpose(0, 1))
    assert_equal([expected, state], [found, state_hpu])
    expected, found = host(expected[..., :4], state), device(found[..., :4], state_hpu)
    assert_equal(expected, found)
    assert_gradients_equal(host, device, expected, found)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(cell):
    host, device = both(lambda: cell(4, 6))
    expected, found = host(X_TBD[0]), device(X_TBD[0].to("hpu"))
    assert_equal(expected, found)
    assert_gradients_equal(host, device, expected, found)


def encoder(enable_nested_tensor: bool, norm_first: bool) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=enable_nested_tensor)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True, but:UserWarning")
@pytest.mark.parametrize("enable_nested_tensor", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("is_training", [True, False])
def test_transformer_encoders_with_a_padding_mask(enable_nested_tensor, norm_first, is_training):
    host, device = both(lambda: encoder(enable_nested_tensor, norm_first))
    host.train(is_training), device.train(is_training)
    x = torch.randn(3, 5, 8)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] + [True] * 4])
    expected = host(x, src_key_padding_mask=mask)
    found = device(x.to("hpu"), src_key_padding_mask=mask.to("hpu"))
    assert_equal(expected, found)
    assert_gradients_equal(host, device, expected, found)


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype:UserWarning")
@pytest.mark.parametrize("enable_nested_tensor", [True, False])
def test_transformer_encoders_without_gradients(enable_nested_tensor):
    """The CPU has a fused path here that no card takes; so the values are close, not equal."""
    host, device = both(lambda: encoder(enable_nested_tensor, norm_first=False))
    host.eval(), device.eval()
    x = torch.randn(3, 5, 8)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] + [True] * 4])
    with torch.no_grad():
        expected = host(x, src_key_padding_mask=mask)
        found = device(x.to("hpu"), src_key_padding_mask=mask.to("hpu"))
    # The fused path fills what is masked with zeros.
    keep = ~mask[..., None]
    torch.testing.assert_close(found.cpu() * keep, expected * keep, atol=1e-6, rtol=1e-6)


def test_a_whole_transformer():
    make = lambda: nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)  # noqa: E731
    host, device = both(make)
    source, target = torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    expected = host(source, target, tgt_mask=causal, tgt_is_causal=True)
    found = device(
        source.to("hpu"), target.to("hpu"), tgt_mask=causal.to("hpu"), tgt_is_causal=True
    )
    assert_equal(expected, found)
    assert_gradients_equal(host, device, expected, found)
    made = nn.Transformer.generate_square_subsequent_mask(4, device="hpu")
    assert_equal(causal, made)


@pytest.mark.parametrize("average_weights", [True, False])
def test_multi_head_attention(average_weights):
    host, device = both(lambda: nn.MultiheadAttention(8, 2, batch_first=True))
    x = torch.randn(2, 5, 8)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    options = {"average_attn_weights": average_weights}
    expected = host(x, x, x, key_padding_mask=mask, **options)
    x, mask = x.to("hpu"), mask.to("hpu")
    found = device(x, x, x, key_padding_mask=mask, **options)
    assert_equal(expected, found)
    assert_gradients_equal(host, device, expected, found)
