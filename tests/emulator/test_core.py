"""htcore: marks, step closures, and what prepares a model for inference."""

from __future__ import annotations

from collections.abc import Iterator

import habana_frameworks.torch.core as htcore
import pytest
import torch
from torch import nn

from lightning_gaudi import emulator
from lightning_gaudi.emulator import step_closures, switches


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(switches, "_switches", switches._Switches())
    yield
    assert not step_closures._closures


def test_marks_flush_and_give_none():
    torch.ones(3, device="hpu") + 1
    with emulator.record() as events:
        assert htcore.mark_step() is None
    assert [(e.kind, e.cause) for e in events if e.kind != "compile"] == [
        ("mark_step", "mark_step"),
        ("flush", "mark_step"),
    ]
    torch.ones(3, device="hpu") + 1
    with emulator.record() as events:
        assert htcore.iter_mark_step() is None
        assert htcore.mark_step("hpu", sync=True) is None
        htcore.step_closure._mark_step_if_lazy()
    assert [e.kind for e in events].count("mark_step") == 3
    assert [e.kind for e in events].count("flush") == 1


def test_closures_run_after_the_next_mark_in_order_and_once():
    seen: list[object] = []
    value = torch.zeros(1, device="hpu")
    htcore.add_step_closure(lambda v: seen.append(("first", v.item())), args=(value,))
    htcore.add_step_closure(lambda: seen.append("second"))
    value += 5
    assert seen == []
    htcore.mark_step()
    assert seen == [("first", 5.0), "second"]
    htcore.mark_step()
    htcore.iter_mark_step()
    assert len(seen) == 2


def test_a_closure_that_a_closure_adds_waits_for_the_next_mark():
    seen: list[str] = []

    def outer() -> None:
        seen.append("outer")
        htcore.add_step_closure(seen.append, ("inner",))

    htcore.add_step_closure(outer)
    htcore.add_step_closure(seen.append, ("other",))
    htcore.mark_step()
    assert seen == ["outer", "other"]
    htcore.iter_mark_step()
    assert seen == ["outer", "other", "inner"]


def test_a_closure_may_mark():
    seen: list[str] = []

    def marks() -> None:
        htcore.add_step_closure(seen.append, ("of the inner mark",))
        htcore.mark_step()
        htcore.add_step_closure(seen.append, ("of the next",))
        seen.append("marked")

    htcore.add_step_closure(marks)
    htcore.add_step_closure(seen.append, ("behind",))
    htcore.mark_step()
    assert seen == ["of the inner mark", "marked", "behind"]
    htcore.mark_step()
    assert seen[3:] == ["of the next"]


def test_an_error_in_a_closure_reaches_the_user_and_loses_nothing():
    seen: list[int] = []

    def fail() -> None:
        raise ZeroDivisionError("of the closure")

    for number in (1, 2):
        htcore.add_step_closure(seen.append, (number,))
    htcore.add_step_closure(fail)
    htcore.add_step_closure(seen.append, (3,))
    with pytest.raises(ZeroDivisionError, match="of the closure"):
        htcore.mark_step()
    assert seen == [1, 2]
    htcore.add_step_closure(seen.append, (4,))
    htcore.mark_step()
    assert seen == [1, 2, 3, 4]


class Net(nn.Module):
    """Two convolutions: the first is followed by a norm alone, the second also by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
        self.conv2, self.norm2 = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.conv1(x)).relu()
        y = self.conv2(x)
        return self.norm2(y) + y


def trained_net() -> Net:
    net = Net()
    net(torch.randn(4, 2, 8, 8) * 3 + 1)
    return net.eval()


@pytest.mark.parametrize("name", ["hpu_set_env", "hpu_set_inference_env"])
def test_inference_folds_batch_norms(name):
    net = trained_net()
    batch = torch.randn(2, 2, 8, 8)
    expected = net(batch)
    fused = getattr(htcore, name)(net)
    called = [node.target for node in fused.graph.nodes if node.op == "call_module"]
    assert called == ["conv1", "conv2", "norm2"]
    torch.testing.assert_close(fused(batch), expected)
    assert torch.equal(net(batch), expected)  # the model itself is as it was
    torch.testing.assert_close(fused.to("hpu")(batch.to("hpu")).cpu(), expected)
    assert switches.is_inference_mode_enabled()


def test_what_cannot_be_folded_comes_back_as_it_was(capsys):
    class Untraceable(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    for module, reason in (
        (Net().train(), "only applicable for eval mode"),
        (Net().eval().to("hpu"), "for model on CPU"),
        (Untraceable().eval(), "non-fx traceable module"),
    ):
        assert htcore.hpu_set_inference_env(module) is module
        assert reason in capsys.readouterr().out
    assert htcore.hpu_set_env() is None


@pytest.mark.parametrize("name", ["hpu_initialize", "hpu_inference_initialize"])
@pytest.mark.parametrize("undo", ["hpu_reset_env", "hpu_teardown_inference_env"])
def test_initialize_switches_and_changes_no_parameter(name, undo):
    net = Net().to("hpu")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert getattr(htcore, name)(net, mark_only_scales_as_const=True) is None
    assert switches.is_inference_mode_enabled()
    assert switches._switches.matmul3d_2d_reshape
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert getattr(htcore, undo)() is None
    assert not switches.is_inference_mode_enabled()
    assert not switches._switches.matmul3d_2d_reshape


def test_switches_answer_what_was_set(monkeypatch):
    hpu = torch.hpu
    assert hpu.get_dynamic_shape_status() is False
    monkeypatch.setenv("PT_HPU_ENABLE_REFINE_DYNAMIC_SHAPES", "1")
    monkeypatch.setenv("PT_HPU_INFERENCE_MODE", "true")
    assert hpu.get_dynamic_shape_status() is True
    assert hpu.is_inference_mode_enabled() is True
    hpu.disable_dynamic_shape()
    hpu.disable_inference_mode()
    assert hpu.get_dynamic_shape_status() is False
    assert hpu.is_inference_mode_enabled() is False
    monkeypatch.undo()
    hpu.enable_dynamic_shape()
    assert hpu.get_dynamic_shape_status() is True
    hpu.disable_dynamic_shape()


def test_recomputing_is_chosen_for_a_block():
    hpu = torch.hpu
    assert hpu.recompute_sdp_enabled() is True
    with pytest.raises(ZeroDivisionError), hpu.sdp_kernel(enable_recompute=False):
        assert hpu.recompute_sdp_enabled() is False
        with hpu.sdp_kernel():
            assert hpu.recompute_sdp_enabled() is True
        raise ZeroDivisionError
    assert hpu.recompute_sdp_enabled() is True
    hpu.enable_recompute_sdp(False)
    assert hpu.recompute_sdp_enabled() is False


def test_in_eager_mode_marks_and_closures_do_nothing(run_python):
    code = """
        import lightning_gaudi
        import habana_frameworks.torch.core as htcore
        htcore.add_step_closure(print, ("never",))
        htcore.mark_step()
        htcore.iter_mark_step()
        print(htcore.is_lazy())
    """
    assert run_python(code, PT_HPU_LAZY_MODE="0").stdout == "False\n"
