"""`GaudiConfig`: what a ``gaudi_config.json`` of optimum-habana says."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.precision import Precision
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.precision import HPUPrecision
from lightning_gaudi.precision.op_lists import set_op_lists

_FILE = "gaudi_config.json"
# Written into the file by the library, and nothing that changes a run.
_ABOUT = frozenset({"optimum_version", "transformers_version", "_name_or_path", "model_type"})
# The mixed precision before autocast, which the Gaudi software no longer has.
_LEGACY_SWITCH = "use_habana_mixed_precision"
_LEGACY = frozenset({"hmp_bf16_ops", "hmp_fp32_ops", "hmp_is_verbose", "hmp_opt_level"})


@dataclass(frozen=True, kw_only=True)
class GaudiConfig:
    """Settings of a ``gaudi_config.json`` (optimum-habana, ``GaudiConfig``).

    Attributes:
        use_torch_autocast: Whether steps run in ``"bf16-mixed"``.
        autocast_bf16_ops: Names of ops that autocast lowers; None for the bridge's own list.
        autocast_fp32_ops: Names of ops that autocast runs in float32; None for the bridge's own.
        use_dynamic_shapes: Whether the bridge compiles for shapes that change.
        use_fused_adam: Whether AdamW is the Gaudi software's.
        use_fused_clip_norm: Whether gradients are clipped by norm by the Gaudi software.
    """

    use_torch_autocast: bool = False
    autocast_bf16_ops: tuple[str, ...] | None = None
    autocast_fp32_ops: tuple[str, ...] | None = None
    use_dynamic_shapes: bool = False
    use_fused_adam: bool = False
    use_fused_clip_norm: bool = False

    @classmethod
    def read(cls, source: Mapping[str, Any] | str | os.PathLike[str]) -> GaudiConfig:
        """Read settings.

        Args:
            source: The settings, the path of a JSON file with them, or of a folder with a
                ``gaudi_config.json``. Nothing is downloaded.

        Raises:
            ConfigurationError: There is no such file, or it holds something else.
        """
        settings = dict(source) if isinstance(source, Mapping) else _load(Path(source))
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = settings.pop(field.name, field.default)
            if field.name.startswith("use_"):
                if not isinstance(value, bool):
                    raise ConfigurationError(
                        f"{field.name} of the Gaudi configuration must be true or false, but it is "
                        f"{value!r}."
                    )
            elif value is not None:
                if not isinstance(value, (list, tuple)):
                    raise ConfigurationError(
                        f"{field.name} of the Gaudi configuration must be a list of names of ops, "
                        f"but it is {value!r}."
                    )
                value = tuple(value)
            values[field.name] = value
        if settings.pop(_LEGACY_SWITCH, False):
            if values["use_torch_autocast"]:
                raise ConfigurationError(
                    f"the Gaudi configuration has both use_torch_autocast and {_LEGACY_SWITCH}. "
                    "Leave out the latter: Habana mixed precision is gone from the Gaudi software."
                )
            rank_zero_warn(
                f"{_LEGACY_SWITCH} of the Gaudi configuration stands for use_torch_autocast with "
                "its own op lists here: Habana mixed precision is gone from the Gaudi software."
            )
            values["use_torch_autocast"] = True
        if unknown := sorted(settings.keys() - _ABOUT - _LEGACY):
            rank_zero_warn(
                f"the Gaudi configuration has settings that are not known and change nothing here: "
                f"{', '.join(unknown)}. Known are: {', '.join(values)}."
            )
        return cls(**values)

    def precision_plugin(self, given: Precision | None) -> Precision | None:
        """The precision that goes with the settings; sets autocast's op lists.

        Args:
            given: The user's own plugin, or None.

        Raises:
            ConfigurationError: The user's own is of another precision, or a list is wrong.
            ExecutionModeError: It is too late for op lists.
        """
        if self.autocast_bf16_ops is not None or self.autocast_fp32_ops is not None:
            set_op_lists(self.autocast_bf16_ops, self.autocast_fp32_ops)
        if not self.use_torch_autocast:
            return given
        if given is None:
            return HPUPrecision("bf16-mixed")
        if given.precision != "bf16-mixed":
            raise ConfigurationError(
                "use_torch_autocast of the Gaudi configuration means precision 'bf16-mixed', but "
                f"precision_plugin is {type(given).__name__}({given.precision!r}). Leave out one "
                "of them."
            )
        return given

    def fuse_clip_norm(self, plugin: Precision) -> None:
        """Let a precision plugin clip by norm with the Gaudi software's op."""
        if isinstance(plugin, HPUPrecision):
            plugin.uses_fused_clip_norm = True
        else:
            rank_zero_warn(
                "use_fused_clip_norm of the Gaudi configuration needs HPUPrecision, but the "
                f"precision plugin is {type(plugin).__name__}: it clips in its own way."
            )


def _load(path: Path) -> dict[str, Any]:
    file = path / _FILE if path.is_dir() else path
    try:
        settings = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"a Gaudi configuration must be a dict, a JSON file, or a folder with a {_FILE}, but "
            f"{str(path)!r} cannot be read: {error}. A name on the Hugging Face Hub is not looked "
            "up: download the file and give its path."
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{str(file)!r} must be a JSON file, but {error}.") from error
    if not isinstance(settings, dict):
        raise ConfigurationError(
            f"{str(file)!r} must hold a JSON object with settings, but it holds a "
            f"{type(settings).__name__}."
        )
    return settings
