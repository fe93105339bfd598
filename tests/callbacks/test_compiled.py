"""`HPUGraphCallback` in eager and compile mode: targets compiled in place of captured."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each compiles in a process of its own

HELPERS = f"import sys; sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"


@pytest.fixture
def run_eager(run_python):
    def run(code: str):
        code = (
            HELPERS
            + (
                "from compiled_runs import *\n"
                "import warnings\n"
                "from lightning_gaudi import HPUGraphCallback\n"
                "def said(caught, text):\n"
                "    return len([w for w in caught if text in str(w.message)])\n"
            )
            + code
        )
        return run_python(code, PT_HPU_LAZY_MODE="0").stdout

    return run


@pytest.mark.parametrize("mode", ["eager", "compile"])
def test_all_stages_equal_a_run_without(run_eager, mode):
    printed = run_eager(
        f"""
callback = HPUGraphCallback(("fit", "validate", "test", "predict"))
expected = run_all("eager", network=Norms)
assert_same(run_all({mode!r}, callback, network=Norms), expected)
stats = callback.stats
assert list(stats.per_target) == ["network"]
# Two shapes in training, in the validations around it, and in each of the three other runs.
assert (stats.captures, stats.replays, stats.eager_calls) == (10, 33, 0), stats
assert stats.capture_seconds > 0
"""
    )
    assert "HPU graphs" in printed  # the table


def test_counts_shapes_and_max_graphs(run_eager):
    run_eager(
        """
expected = torch.cat(trainer("eager").predict(make(), data()))
callback = HPUGraphCallback()
assert torch.equal(torch.cat(trainer("eager", callback).predict(make(), data())), expected)
assert (callback.stats.captures, callback.stats.replays) == (2, 4)

callback = HPUGraphCallback(max_graphs=1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert torch.equal(torch.cat(trainer("eager", callback).predict(make(), data())), expected)
stats = callback.stats
assert (stats.captures, stats.replays, stats.eager_calls) == (1, 4, 1), stats
assert said(caught, "more than max_graphs=1 kinds of arguments") == 1
"""
    )


def test_options(run_eager):
    run_eager(
        """
expected = torch.cat(trainer("eager").predict(make(), data()))
callback = HPUGraphCallback(disable_tensor_cache=True, asynchronous=True, verify=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        found = torch.cat(trainer("eager", callback).predict(make(), data()))
        assert torch.equal(found, expected)
assert said(caught, "asynchronous, disable_tensor_cache has no meaning outside lazy mode") == 1

callback = HPUGraphCallback(warmup=[[4, 4], [2, 4]])
found = torch.cat(trainer("eager", callback).predict(make(), data()))
assert torch.equal(found, expected)
assert callback.stats.captures == 2
assert callback.stats.replays == 6
"""
    )


def test_what_does_not_compile(run_eager):
    run_eager(
        """
from lightning_gaudi.callbacks import compiled
from lightning_gaudi.runtime import compilation

class Broken:
    def __call__(self, graph, inputs, **kwargs):
        raise ValueError("no such kernel")

torch._dynamo.reset()
original = compilation._backend
compilation._backend = lambda on_compile: Broken()
expected = torch.cat(trainer("eager").predict(make(), data()))
try:
    trainer("eager", HPUGraphCallback()).predict(make(), data())
except Exception as error:
    assert "no such kernel" in str(error)
else:
    raise AssertionError("no error")
callback = HPUGraphCallback(on_failure="eager")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = torch.cat(trainer("eager", callback).predict(make(), data()))
assert torch.equal(found, expected)
assert said(caught, "'network' runs op by op from now on: it does not compile.") == 1
assert callback.stats.eager_calls == 6
"""
    )
