"""What the emulator must know of each op, worked out once from its schema.

``hpu_ops.tsv`` lists the ATen overloads with a kernel on the card and the positions of scalar
arguments that the bridge turns into tensors (read from bridge release 1.19.0, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from importlib.resources import files
from typing import Any

import torch
from torch._ops import OpOverload

from lightning_gaudi.emulator.rng import draws_from_device
from lightning_gaudi.emulator.strict import is_strict, narrowing


class OpKind(Enum):
    """How an op behaves on a lazy device."""

    COMPUTE = auto()
    """Joins the pending graph."""
    FACTORY = auto()
    """Allocates, computes nothing: ``empty_like``."""
    HOST_READ = auto()
    """Gives a Python number or bool that depends on data: flushes and waits."""
    DATA_DEPENDENT = auto()
    """Gives a shape that depends on data, so the host must wait for it: ``nonzero``."""
    COLLECTIVE = auto()
    """Talks to other processes: what is pending must run first."""
    METADATA = auto()
    """Gives what the host knows anyway: ``is_pinned``."""


# What CPU kernels are called where the card runs the composite's own steps (softmax, bmm, mm...).
_CPU_SPELLINGS = frozenset(
    {
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
        "_scaled_dot_product_attention_math_for_mps",
        "_fused_sdp_choice",
        "_convolution",
        "mkldnn_convolution",
        "mkldnn_rnn_layer",
        "mkldnn_rnn_layer_backward",
        "mkldnn_linear",
        "_thnn_fused_lstm_cell",
        "_thnn_fused_gru_cell",
        "_slow_conv2d_forward",
        "_slow_conv2d_backward",
        "slow_conv3d_forward",
        "_nnpack_spatial_convolution",
        "_batch_norm_with_update",
        "_batch_norm_no_update",
        "batch_norm_backward",
    }
)

_HOST_READS = frozenset({"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"})
_METADATA = frozenset(
    {
        "is_pinned",
        "is_same_size",
        "_has_compatible_shallow_copy_type",
        "_version",
        "is_floating_point",
        "is_complex",
        "is_signed",
        "is_inference",
        "is_leaf",
        "_fused_sdp_choice",
        "_has_same_storage_numel",
    }
)
_DATA_DEPENDENT = frozenset(
    {
        "nonzero",
        "nonzero_numpy",
        "argwhere",
        "masked_select",
        "_unique",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "unique_dim_consecutive",
        "bincount",
        "repeat_interleave",
        "nms",
    }
)
# Indices and CTC's lengths may lie on the host for any device; packed sequences' lengths must.
_HOST_POSITIONS = {
    "index": frozenset({1}),
    "index_put": frozenset({1}),
    "index_put_": frozenset({1}),
    "_index_put_impl_": frozenset({1}),
    "_pack_padded_sequence": frozenset({1}),
    "_pack_padded_sequence_backward": frozenset({2}),
    "_ctc_loss": frozenset({2, 3}),
}
_FACTORIES = frozenset({"empty_like", "new_empty", "new_empty_strided"})
# These numbers are tensors of the recipe, unless they are 1 (bridge 1.19.0, hpu_lazy_ops.cpp).
_UNLESS_ONE = {
    **dict.fromkeys(("addcmul", "addcmul_", "addcdiv", "addcdiv_"), frozenset({"value"})),
    **dict.fromkeys(("add", "add_"), frozenset({"alpha"})),
}

_COMPOSITE_KEYS = ("CompositeImplicitAutograd", "CompositeExplicitAutograd")


def _load_table() -> dict[str, frozenset[int]]:
    text = files("lightning_gaudi.emulator").joinpath("hpu_ops.tsv").read_text("utf-8")
    table: dict[str, frozenset[int]] = {}
    for line in text.splitlines():
        if line.startswith(("#", "op\t")) or not line:
            continue
        name, _, positions = line.partition("\t")
        table[name] = frozenset(int(p) for p in positions.split(",") if p)
    return table


_TABLE = _load_table()


def _short_name(func: OpOverload) -> str:
    name = func._schema.name.removeprefix("aten::")
    return f"{name}.{func._schema.overload_name}" if func._schema.overload_name else name


def _has_card_kernel(func: OpOverload, base: str, short: str) -> bool:
    """Whether the card runs the op itself or through the steps of a composite."""
    if base in _CPU_SPELLINGS or short in _TABLE:
        return True
    qualified = func._schema.name + (
        f".{func._schema.overload_name}" if func._schema.overload_name else ""
    )
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    if any(has_kernel(qualified, key) for key in _COMPOSITE_KEYS):
        return True
    # A structured op needs only its out variant; PyTorch makes the others from that.
    out_names = {f"{base.rstrip('_')}.out", f"{short}_out", f"{base}.{base}_out"}
    return bool(out_names & _TABLE.keys())


class OpInfo:
    """One op, described.

    Attributes:
        func: The overload.
        name: Its name without the namespace, overload included: ``"add.Tensor"``.
        kind: How it behaves.
        may_alias: Whether a result may share an input's storage.
        writes: Positions of positional arguments and names of keyword arguments it writes to.
        ignored: Positions and names of numbers whose value is no part of the recipe.
        ignored_unless_one: Names of numbers that are ignored unless they are 1.
        has_card_kernel: Whether the card has a kernel; without one it is a CPU fallback.
        host_positions: Positions of arguments that may lie on the host, such as index tensors.
        call: Runs the overload; ``func`` itself is a detour through Python to the same.
        is_random: Whether the op draws random numbers; `call` takes the device's generator.
        is_simple: Whether the op gives one tensor and writes to nothing.
    """

    __slots__ = (
        "call",
        "func",
        "has_card_kernel",
        "host_positions",
        "ignored",
        "ignored_unless_one",
        "is_random",
        "is_simple",
        "kind",
        "may_alias",
        "name",
        "writes",
    )

    def __init__(self, func: OpOverload) -> None:
        schema = func._schema
        base = schema.name.removeprefix("aten::")
        self.func = func
        self.call: Callable[..., Any] = func._op if type(func) is OpOverload else func
        self.is_random = torch.Tag.nondeterministic_seeded in func.tags
        if self.is_random:
            self.call = draws_from_device(self.call, schema)
        self.name = _short_name(func)
        self.kind = _kind_of(func, base)
        # ``_unsafe_view`` is a view of which its schema says nothing, so that autograd sees none.
        self.may_alias = base == "_unsafe_view" or any(
            r.alias_info is not None and not r.alias_info.is_write for r in schema.returns
        )
        self.writes: tuple[int | str, ...] = tuple(
            argument.name if argument.kwarg_only else position
            for position, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        )
        if is_strict():
            self.call = narrowing(self.call, self.writes)
        ignored = _TABLE.get(self.name, frozenset())
        self.ignored: frozenset[int | str] = frozenset(
            argument.name if argument.kwarg_only else position
            for position, argument in enumerate(schema.arguments)
            if position in ignored or _takes_tensor(argument)
        )
        self.ignored_unless_one = _UNLESS_ONE.get(base, frozenset())
        self.has_card_kernel = (
            self.kind is not OpKind.COMPUTE
            or self.may_alias
            or not schema.name.startswith("aten::")
            or _has_card_kernel(func, base, self.name)
        )
        self.host_positions = _HOST_POSITIONS.get(base, frozenset())
        self.is_simple = (
            not self.writes
            and len(schema.returns) == 1
            and isinstance(schema.returns[0].type, torch.TensorType)
        )


def _takes_tensor(argument: Any) -> bool:
    """Whether a Python number here stands for a zero-dimensional tensor (``x + 2``)."""
    return isinstance(argument.type, torch.TensorType) or (
        isinstance(argument.type, torch.OptionalType)
        and isinstance(argument.type.getElementType(), torch.TensorType)
    )


def _kind_of(func: OpOverload, base: str) -> OpKind:
    if base in _HOST_READS:
        return OpKind.HOST_READ
    short = _short_name(func)
    # By overload where only one of them depends on data; composites arrive whole in inference mode.
    if short == "where" or (base in _DATA_DEPENDENT and short != "repeat_interleave.self_int"):
        return OpKind.DATA_DEPENDENT
    if base in _METADATA:
        return OpKind.METADATA
    if base in _FACTORIES:
        return OpKind.FACTORY
    if func.namespace in ("c10d", "_c10d_functional"):
        return OpKind.COLLECTIVE
    return OpKind.METADATA if func._schema.name.startswith("prim") else OpKind.COMPUTE
