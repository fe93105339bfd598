"""``torch.compile(model, backend="hpu_backend")``, in eager mode.

AOTAutograd gives us the forward and the backward as graphs of ATen ops, and `CompiledGraph` runs
them: op by op, in the order and with the kernels of eager mode, or through Inductor where
``LIGHTNING_GAUDI_EMULATOR_COMPILE=1``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from lightning_gaudi.emulator import compile_options
from lightning_gaudi.emulator.compiled_graph import CompiledGraph
from lightning_gaudi.emulator.mode import is_lazy
from lightning_gaudi.emulator.tracing import teach_dynamo

BACKEND = "hpu_backend"


def hpu_backend(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any
) -> Callable[..., Any]:
    """Compile one graph that Dynamo traced.

    Args:
        graph_module: The graph.
        example_inputs: Its inputs, fake or real.
        kwargs: ``options`` as for the SDK (see `compile_options`); ``mode`` is not looked at, as
            on a card.

    Returns:
        The compiled function, with its backward.

    Raises:
        RuntimeError: The process is in lazy mode, where a card has no such backend.
        ValueError: An option that the SDK does not take.
    """
    if is_lazy():
        raise RuntimeError(
            f"{BACKEND} works in eager mode only, and this process is in lazy mode. Export "
            "PT_HPU_LAZY_MODE=0 before Python starts, or leave torch.compile out."
        )
    options = compile_options.resolve(kwargs.get("options"))
    from torch._dynamo.backends.common import aot_autograd

    compiled: Callable[..., Any] = aot_autograd(
        fw_compiler=_compile_graph,
        bw_compiler=_compile_graph,
        decompositions=_decompositions(options["decomposition_mode"]),
        keep_inference_input_mutations=bool(options["keep_input_mutations"]),
    )(graph_module, example_inputs)
    return compiled


def _decompositions(mode: str) -> Any:
    """The card's own list ("habana") names ops it lacks; the kernels here need none."""
    if mode != "core_aten":
        return None
    from torch._decomp import core_aten_decompositions

    return core_aten_decompositions()


def register() -> None:
    """Give ``torch.compile`` the backend. Again, it does nothing."""
    teach_dynamo()
    from torch._dynamo.backends.registry import _COMPILER_FNS, register_backend

    if _COMPILER_FNS.get(BACKEND) is not hpu_backend:
        register_backend(hpu_backend, name=BACKEND)


def _compile_graph(graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
    graph = CompiledGraph(graph_module)

    def call(args: list[Any]) -> Any:
        values = tuple(args)
        args.clear()  # the caller's list would keep the inputs alive
        return graph(*values)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call
