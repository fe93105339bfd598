"""`HPUPrecision`: which dtype a module computes in on the HPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import Precision
from lightning_utilities.core.apply_func import apply_to_collection
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn import Module
from torch.optim import LBFGS, Optimizer
from typing_extensions import override

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.precision.fp8 import Fp8Layers, is_engine_layer
from lightning_gaudi.precision.op_lists import OpList, set_op_lists
from lightning_gaudi.precision.scaler import HPUGradScaler
from lightning_gaudi.runtime import device as hpu
from lightning_gaudi.runtime import loading, optimizers, transformer_engine

HPUPrecisionName = Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "fp8"]
PRECISIONS: tuple[str, ...] = get_args(HPUPrecisionName)

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "fp8": torch.bfloat16}
_WEIGHTS = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
_NOT_ON_GAUDI_1 = ("16-mixed", "16-true", "fp8")


class HPUPrecision(Precision):
    """Precision on the HPU.

    Args:
        precision: ``"32-true"`` computes in float32. ``"bf16-mixed"`` keeps float32 weights and
            runs the steps under ``torch.autocast("hpu", dtype=torch.bfloat16)``. ``"bf16-true"``
            turns weights, floating-point inputs and the default dtype of the steps to bfloat16.
            ``"16-mixed"`` and ``"16-true"`` are the same with float16; the former scales the loss
            and reads one value from the device every optimizer step, to skip those that overflow
            (see `HPUGradScaler`). ``"fp8"`` trains linear layers in 8 bits by the Transformer
            Engine, under autocast to bfloat16; `HPUGraphCallback` cannot capture its layers, whose
            scales are no buffers, and inference in fp8 (Intel Neural Compressor) is not its
            business. A first-generation Gaudi has no float16 and no fp8.
        lower_precision_ops: Names of the ops that autocast runs in its dtype, or the path of a file
            with one on each line. They take the place of `DEFAULT_LOWER_PRECISION_OPS`. The Gaudi
            software reads the lists when it loads, so make this object before. They then hold for
            the whole process and for those that it starts.
        fp32_ops: The same for the ops that autocast runs in float32, `DEFAULT_FP32_OPS`. Where only
            these are given, they leave the default lower precision list.
        scaler: The loss scaler of ``"16-mixed"``; an `HPUGradScaler` by default.
        recipe: For ``"fp8"``: a ``DelayedScaling`` recipe of the Transformer Engine, or its fields.
        replace_layers: For ``"fp8"``: whether `torch.nn.Linear` layers become the Transformer
            Engine's, with their own weights. None does so unless the module has layers of it.
        skip_layers: For ``"fp8"``: names of layers that are not replaced, such as ``"lm_head"``;
            ``*`` stands for anything, and a module's name for all inside it.

    Attributes:
        scaler: The loss scaler, or None.
        uses_fused_clip_norm: Whether gradients are clipped by norm with the Gaudi software's
            ``FusedClipNorm``. Read when gradients are clipped; False unless a
            `gaudi_config.json` says otherwise.

    Raises:
        ConfigurationError: The precision is unknown, the card has none such, arguments do not go
            with it, an op list is wrong, or the Transformer Engine is not installed.
        ExecutionModeError: It is too late for op lists.
    """

    def __init__(
        self,
        precision: HPUPrecisionName = "32-true",
        *,
        lower_precision_ops: OpList | None = None,
        fp32_ops: OpList | None = None,
        scaler: torch.amp.GradScaler | None = None,
        recipe: Any | Mapping[str, Any] | None = None,
        replace_layers: bool | None = None,
        skip_layers: Sequence[str] = (),
    ) -> None:
        if precision not in PRECISIONS:
            raise ConfigurationError(
                f"precision must be one of {', '.join(map(repr, PRECISIONS))} on the HPU, but it "
                f"is {precision!r}."
                + (
                    " The Transformer Engine for Gaudi is chosen by "
                    "Trainer(plugins=[HPUPrecision('fp8')])."
                    if str(precision).startswith("transformer-engine")
                    else ""
                )
            )
        self._check_arguments(
            precision, lower_precision_ops, fp32_ops, scaler, recipe, replace_layers, skip_layers
        )
        self.precision: Any = precision  # Lightning's own type names no fp8
        self._autocast_dtype = _AUTOCAST.get(precision)
        self._weights_dtype = _WEIGHTS.get(precision)
        if precision == "fp8":
            transformer_engine.require()
        self._check_card()
        if lower_precision_ops is not None or fp32_ops is not None:
            set_op_lists(lower_precision_ops, fp32_ops)
        if precision == "16-mixed" and scaler is None:
            scaler = HPUGradScaler()
        self.scaler = scaler
        self._has_loss = True
        self.uses_fused_clip_norm = False
        self._recipe = recipe
        self._replace_layers = replace_layers
        self._skip_layers = (skip_layers,) if isinstance(skip_layers, str) else tuple(skip_layers)
        self._fp8_layers = Fp8Layers()

    @staticmethod
    def _check_arguments(
        precision: str,
        lower_precision_ops: object,
        fp32_ops: object,
        scaler: object,
        recipe: object,
        replace_layers: object,
        skip_layers: object,
    ) -> None:
        allowed = {
            "lower_precision_ops": (lower_precision_ops is not None, tuple(_AUTOCAST)),
            "fp32_ops": (fp32_ops is not None, tuple(_AUTOCAST)),
            "scaler": (scaler is not None, ("16-mixed",)),
            "recipe": (recipe is not None, ("fp8",)),
            "replace_layers": (replace_layers is not None, ("fp8",)),
            "skip_layers": (bool(skip_layers), ("fp8",)),
        }
        for name, (is_given, precisions) in allowed.items():
            if is_given and precision not in precisions:
                raise ConfigurationError(
                    f"{name} is for precision {' or '.join(map(repr, precisions))}, but the "
                    f"precision is {precision!r}. Leave it out."
                )

    def _check_card(self) -> None:
        """Check that the card can, where asking does not load the software."""
        if self.precision in _NOT_ON_GAUDI_1 and loading.is_loaded() and hpu.name() == "GAUDI":
            raise ConfigurationError(
                f"precision={self.precision!r} needs a Gaudi 2 or newer, but this card is a "
                "first-generation Gaudi, which has no float16 and no fp8. Use 'bf16-mixed' or "
                "'bf16-true'."
            )

    # --- what is converted ----------------------------------------------------------------------

    @override
    def convert_module(self, module: Module) -> Module:
        """Turn weights to this precision.

        With ``"bf16-true"`` and ``"16-true"``, floating-point weights and buffers change dtype;
        with ``"fp8"``, linear layers are replaced, and keep their weights.
        """
        self._check_card()
        if self._weights_dtype is not None:
            return module.to(self._weights_dtype)
        if self.precision == "fp8":
            self._convert_to_fp8(module)
        return module

    def _convert_to_fp8(self, module: Module) -> None:
        if isinstance(self._recipe, Mapping):
            self._recipe = transformer_engine.make_recipe(self._recipe)
        layers = self._fp8_layers = Fp8Layers()
        replace = self._replace_layers
        if replace is None:
            replace = not any(is_engine_layer(inner) for inner in module.modules())
        if replace:
            layers.replace_in(module, self._skip_layers)
            rank_zero_info(f"fp8: {len(layers.replaced)} linear layers by the Transformer Engine.")
        if layers.unfit:
            rank_zero_warn(
                "these linear layers do not compute in fp8, because their sizes are no multiples "
                f"of 16: {', '.join(layers.unfit)}. skip_layers silences this."
            )
        layers.find_in(module)

    @override
    def convert_input(self, data: Any) -> Any:
        """With weights in half precision, turn floating-point tensors of a batch to it."""
        return data if self._weights_dtype is None else _to_dtype(data, self._weights_dtype)

    @override
    def convert_output(self, data: Any) -> Any:
        """Turn floating-point tensors to the default dtype, except in ``"32-true"``.

        Fabric does so; the Trainer returns outputs as they are.
        """
        return data if self.precision == "32-true" else _to_dtype(data, torch.get_default_dtype())

    @override
    def tensor_init_context(self) -> AbstractContextManager[None]:
        """With weights in half precision, new tensors are in it."""
        return nullcontext() if self._weights_dtype is None else _default_dtype(self._weights_dtype)

    @override
    def module_init_context(self) -> AbstractContextManager[None]:
        """With weights in half precision, new modules are in it."""
        return self.tensor_init_context()

    @override
    def forward_context(self) -> AbstractContextManager[Any]:
        """What a step runs under."""
        if self._autocast_dtype is None:
            return self.tensor_init_context()
        autocast = torch.autocast("hpu", dtype=self._autocast_dtype)
        return self._fp8_context(autocast) if self.precision == "fp8" else autocast

    @contextmanager
    def _fp8_context(self, autocast: torch.autocast) -> Iterator[None]:
        engine = transformer_engine.load()
        with autocast, engine.fp8_autocast(enabled=True, fp8_recipe=self._recipe):
            yield

    # --- steps ----------------------------------------------------------------------------------

    def _without_autocast(self) -> AbstractContextManager[Any]:
        """Outside a step's context, in manual optimization too.

        There the backward and the optimizer run inside the training step. But autocast is for the
        forward: it would multiply the loss by its scale in float16, and update weights in half
        precision.
        """
        return (
            nullcontext() if self._autocast_dtype is None else torch.autocast("hpu", enabled=False)
        )

    @override
    def pre_backward(self, tensor: Tensor, module: Any) -> Tensor:
        """With a scaler, scale the loss."""
        if self.scaler is not None:
            with self._without_autocast():
                tensor = self.scaler.scale(tensor)
        return super().pre_backward(tensor, module)

    @override
    def backward(self, *args: Any, **kwargs: Any) -> None:
        """Run the backward, without autocast."""
        with self._without_autocast():
            super().backward(*args, **kwargs)

    @override
    def optimizer_step(  # type: ignore[override]
        self, optimizer: Any, model: Any, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        """Step; with a scaler, on unscaled gradients, and not where they overflow.

        Raises:
            ConfigurationError: LBFGS, which computes the loss within its step, with a scaler.
        """
        with self._without_autocast():
            if self.scaler is None:
                return super().optimizer_step(optimizer, model=model, closure=closure, **kwargs)
            return self._scaled_step(self.scaler, optimizer, model, closure, **kwargs)

    def _scaled_step(
        self,
        scaler: torch.amp.GradScaler,
        optimizer: Any,
        model: Any,
        closure: Callable[[], Any],
        **kwargs: Any,
    ) -> Any:
        if isinstance(optimizer, LBFGS):
            raise ConfigurationError(
                "precision='16-mixed' cannot scale the losses that LBFGS computes within its step. "
                "Use 'bf16-mixed' or '32-true' with it."
            )
        result = closure()
        # In automatic optimization, None says that the training step gave no loss. There is nothing
        # to unscale then; the hooks and the clipping run as in stock Lightning.
        if result is None and model.automatic_optimization:
            self._has_loss = False
            try:
                self._after_closure(model, optimizer)
            finally:
                self._has_loss = True
            return result
        # Before the hooks that look at gradients, and before clipping.
        if isinstance(scaler, HPUGradScaler):
            scaler.unscale_once(optimizer)
        else:  # the user's own
            scaler.unscale_(optimizer)
        self._after_closure(model, optimizer)
        output = scaler.step(optimizer, **kwargs)
        scaler.update()
        return output

    @override
    def clip_gradients(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        """Clip the gradients, after unscaling them where that has not been done yet."""
        with self._without_autocast():
            if isinstance(optimizer, LightningOptimizer):  # from a module's own `clip_gradients`
                optimizer = optimizer.optimizer
            if isinstance(self.scaler, HPUGradScaler) and self._has_loss:
                self.scaler.unscale_once(optimizer)
            super().clip_gradients(optimizer, *args, **kwargs)

    @override
    def clip_grad_by_norm(self, optimizer: Optimizer, clip_val: int | float) -> None:
        """Clip the gradients' total norm."""
        if self.uses_fused_clip_norm:
            optimizers.clip_norm(self.main_params(optimizer), clip_val)
        else:
            super().clip_grad_by_norm(optimizer, clip_val)

    # --- checkpoints ----------------------------------------------------------------------------

    @override
    def state_dict(self) -> dict[str, Any]:
        """The loss scaler's state, or that of the fp8 layers; empty in other precisions."""
        if self.scaler is not None:
            return self.scaler.state_dict()
        states = self._fp8_layers.state_dict()
        return {"fp8_layers": states} if states else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what `state_dict` has returned, in the same precision."""
        if self.scaler is not None:
            if "scale" in state_dict:
                self.scaler.load_state_dict(state_dict)
        else:
            self._fp8_layers.load_state_dict(state_dict.get("fp8_layers", {}))


def _to_dtype(data: Any, dtype: torch.dtype) -> Any:
    return apply_to_collection(
        data, Tensor, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor
    )


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
