"""The fake package is a real package: every module is found, shown, and names what it lacks."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import pydoc

import habana_frameworks
import pytest

# The names that clients import: optimum-habana, vllm's fork, lightning-habana, accelerate.
CLIENTS = {
    "habana_frameworks.torch": ["__version__", "core", "hpu", "utils"],
    "habana_frameworks.torch.core": [
        "add_step_closure",
        "hpu",
        "hpu_inference_initialize",
        "hpu_initialize",
        "hpu_reset_env",
        "hpu_set_env",
        "hpu_set_inference_env",
        "hpu_teardown_inference_env",
        "is_lazy",
        "iter_mark_step",
        "mark_step",
    ],
    "habana_frameworks.torch.hpu": [
        "Event",
        "HABANA_VISIBLE_MODULES_VAR",
        "HLS_MODULE_ID_VAR",
        "Stream",
        "can_device_access_peer",
        "current_device",
        "current_stream",
        "default_stream",
        "device",
        "device_count",
        "disable_dynamic_shape",
        "enable_dynamic_shape",
        "enable_inference_mode",
        "enable_recompute_sdp",
        "get_device_name",
        "get_dynamic_shape_status",
        "is_available",
        "is_bf16_supported",
        "is_initialized",
        "max_memory_allocated",
        "max_memory_reserved",
        "mem_get_info",
        "memory_allocated",
        "memory_reserved",
        "memory_stats",
        "memory_summary",
        "metric_global",
        "recompute_sdp_enabled",
        "reset_peak_memory_stats",
        "sdp_kernel",
        "set_device",
        "set_stream",
        "stream",
        "synchronize",
    ],
    "habana_frameworks.torch.hpu.metrics": [
        "MetricNotFound",
        "metric_global",
        "metric_localcontext",
        "metrics_dump",
    ],
    "habana_frameworks.torch.hpex.kernels": [
        "CustomSoftmax",
        "FusedSDPA",
        "RotaryPosEmbeddingHelperV1",
        "RotaryPosEmbeddingHelperV2",
        "RotaryPosEmbeddingHelperV3",
        "RotaryPosEmbeddingMode",
        "apply_rotary_pos_emb",
    ],
    "habana_frameworks.torch.hpex.normalization": ["FusedClipNorm", "FusedRMSNorm"],
    "habana_frameworks.torch.hpex.optimizers": ["FusedAdamW", "FusedLamb", "FusedSGD"],
    "habana_frameworks.torch.distributed.hccl": ["initialize_distributed_hpu"],
    "habana_frameworks.torch.utils.experimental": [
        "_data_ptr",
        "_get_device_type",
        "synDeviceType",
    ],
    "habana_frameworks.torch.utils.internal": ["is_lazy"],
}
MODULES = sorted(
    ["habana_frameworks"]
    + [
        info.name
        for info in pkgutil.walk_packages(habana_frameworks.__path__, "habana_frameworks.")
    ]
)


@pytest.mark.parametrize("module", CLIENTS)
def test_what_clients_import_is_there(module):
    imported = importlib.import_module(module)
    for name in CLIENTS[module]:
        assert hasattr(imported, name), name
    assert module in MODULES


@pytest.mark.parametrize("module", MODULES)
def test_every_module_is_a_module(module):
    imported = importlib.import_module(module)
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec == imported.__spec__
    assert inspect.getmodule(imported) is imported
    assert inspect.getsourcefile(imported) == spec.origin
    assert module in pydoc.render_doc(imported)
    assert imported.__doc__
    for name in getattr(imported, "__all__", []):
        assert hasattr(imported, name), name
    if "._" not in module:  # the SDK has no such module
        message = rf"the emulated HPU has no {module}\.no_such_name"
        with pytest.raises(AttributeError, match=message):
            imported.no_such_name  # noqa: B018


@pytest.mark.parametrize("module", MODULES)
def test_a_missing_submodule_is_named(module):
    with pytest.raises(ModuleNotFoundError, match=r"no_such_module") as raised:
        importlib.import_module(f"{module}.no_such_module")
    assert raised.value.name == f"{module}.no_such_module"


def test_what_the_emulator_leaves_out_is_named():
    from habana_frameworks.torch.hpex import optimizers

    message = (
        r"has no habana_frameworks\.torch\.hpex\.optimizers\.FusedLars\. .* the emulator lacks"
    )
    with pytest.raises(AttributeError, match=message):
        optimizers.FusedLars  # noqa: B018
    message = "has no module habana_frameworks.torch.hpex.experimental"
    with pytest.raises(ModuleNotFoundError, match=message):
        importlib.import_module("habana_frameworks.torch.hpex.experimental.transformer_engine")


def test_classes_know_their_module():
    from habana_frameworks.torch.hpex.kernels import FusedSDPA
    from habana_frameworks.torch.hpex.optimizers import FusedAdamW

    assert FusedAdamW.__module__ == "habana_frameworks.torch.hpex.optimizers.FusedAdamW"
    assert inspect.getmodule(FusedSDPA).__name__ == "habana_frameworks.torch.hpex.kernels.FusedSDPA"


def test_versions():
    import habana_frameworks.torch as ht

    assert ht.__version__.startswith("1.19.0")
    assert ht.version == ht.__version__
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("habana-torch-plugin")
