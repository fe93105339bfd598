"""``GaudiStrategy(mode="compile")``: forward and steps compiled, results those of eager mode."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each compiles in a process of its own

HELPERS = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"


@pytest.fixture
def run_eager(run_python):
    def run(code: str):
        return run_python(
            HELPERS + "from compiled_runs import *\n" + code, PT_HPU_LAZY_MODE="0"
        ).stdout

    return run


def test_a_run_equals_eager_mode(run_eager):
    run_eager(
        """
for settings in ({}, {"precision": "bf16-mixed", "accumulate_grad_batches": 2}):
    for network in (mlp, Norms):
        expected = run_all("eager", network=network, **settings)
        assert_same(run_all("compile", network=network, **settings), expected)
"""
    )


def test_it_does_compile_and_not_again(run_eager):
    run_eager(
        """
from torch._dynamo.utils import counters

counts = []
class Watched(Classifier):
    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def on_train_batch_start(self, batch, batch_idx):
        counts.append(counters["stats"]["unique_graphs"])

trainer("compile", max_epochs=4).fit(make(Watched), data(), data())
assert len(counts) == 24
assert counts[0] < counts[6], counts
# Whole and ragged batches, in the step and in validation: all met in the first epoch.
assert counts[-1] == counts[7], counts
"""
    )


def test_manual_optimization_and_a_forward(run_eager):
    run_eager(
        """
class Manual(Classifier):
    def __init__(self, network):
        super().__init__(network)
        self.automatic_optimization = False

    def forward(self, x):
        return self.network(x) * 2

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss)
        optimizer.step()
        self.losses.append(loss.item())

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

assert_same(run_all("compile", cls=Manual), run_all("eager", cls=Manual))
"""
    )


def test_steps_come_back_after_an_error_and_an_own_forward_stays(run_eager):
    run_eager(
        """
class Fails(Classifier):
    def on_train_batch_end(self, *args):
        raise KeyError("mine")

module = make(Fails)
own = lambda x: x
module.forward = own
try:
    trainer("compile").fit(module, data())
except KeyError as error:
    assert error.args == ("mine",)
else:
    raise AssertionError("no error")
assert module.__dict__["forward"] is own
assert not [n for n in (*NAMES[1:], 'log') if n in module.__dict__]
"""
    )


def test_a_module_that_the_user_compiled_stays_as_it_is(run_eager):
    run_eager(
        """
class Silent(Classifier):  # PyTorch 2.13 does not trace into self.log
    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        return self.loss(batch)

def fit(mode, wrap):
    module = make(Silent)
    t = trainer(mode)
    t.fit(wrap(module), data(), data())
    assert set(NAMES) & module.__dict__.keys() == (set(NAMES) if wrap is compiled else set())
    return [0.0], [v.cpu() for v in module.state_dict().values()]

compiled = lambda module: torch.compile(module, backend="eager")
from lightning_gaudi.runtime import compilation
compilation.compile_static = None  # nothing is to be compiled a second time
assert_same(fit("compile", compiled), fit("eager", lambda m: m))
"""
    )


def test_lazy_mode_has_no_such_backend():
    from lightning_gaudi.errors import ExecutionModeError
    from lightning_gaudi.runtime import compilation

    assert not compilation.is_supported()
    with pytest.raises(ExecutionModeError, match="needs the Gaudi software in eager mode, and it"):
        compilation.compile_static(len)
