"""``habana_frameworks.torch.utils.experimental``: which card this is, where a tensor lies."""

from enum import Enum

from torch import Tensor

from lightning_gaudi.emulator.missing import name_missing
from lightning_gaudi.emulator.streams import current_stream
from lightning_gaudi.emulator.tensor import HPUTensor


class synDeviceType(Enum):
    """Kinds of card, with the driver's numbers."""

    synDeviceGaudi = 2
    synDeviceGaudi2 = 4
    synDeviceGaudi3 = 5


def _get_device_type() -> synDeviceType:
    """The kind of the emulated card."""
    return synDeviceType.synDeviceGaudi2


def _data_ptr(tensor: Tensor) -> int:
    """The address of a tensor on the device.

    Raises:
        RuntimeError: The tensor is on the host.
    """
    if type(tensor) is not HPUTensor:
        raise RuntimeError("_data_ptr: the tensor is on the host, and has no address on the hpu.")
    return tensor.data_ptr()


def _compute_stream() -> int:
    """The handle of the current stream."""
    return current_stream().hpu_stream


__all__ = ["_compute_stream", "_data_ptr", "_get_device_type", "synDeviceType"]
__getattr__ = name_missing("habana_frameworks.torch.utils.experimental")
