"""The device: how many cards there are, their memory, waiting for them."""

from __future__ import annotations

from typing import Any

import torch

from lightning_gaudi import emulator
from lightning_gaudi.errors import ConfigurationError, GaudiNotAvailableError
from lightning_gaudi.runtime import driver, environment, loading

_ACCEL_CLASS = driver.ACCEL_CLASS


def count() -> int:
    """Cards of this machine that this process may use; 0 where there are none.

    Loads nothing, because loading would fix the execution mode: the cards are counted in sysfs
    (Linux, ``Documentation/ABI/testing/sysfs-driver-habanalabs``; PCI vendor 0x1da3), less what
    ``HABANA_VISIBLE_MODULES`` hides.
    """
    if loading.is_emulated():
        num_cards = emulator.device_count()
    else:
        num_cards = len(driver.card_entries(_ACCEL_CLASS))
    visible = environment.visible_modules()
    return num_cards if visible is None else min(num_cards, len(visible))


def is_available() -> bool:
    """Whether there is Gaudi software and a card. Loads nothing."""
    return loading.is_software_present() and count() > 0


def require() -> None:
    """Check that there is an HPU to run on.

    Raises:
        GaudiNotAvailableError: There is none; the message says what is missing.
    """
    loading.require_software()
    if count() == 0:
        raise GaudiNotAvailableError(
            "no HPU: the Gaudi software is installed, but the driver shows no card under "
            f"{_ACCEL_CLASS}. {loading.REMEDIES}"
        )


def parse_count(devices: Any) -> int:
    """Turn ``Trainer(devices=...)`` into a number of cards.

    Args:
        devices: An int, a string of digits, or -1, ``"-1"`` or ``"auto"`` for all cards.

    Raises:
        ConfigurationError: It is something else, or more than there are.
    """
    available = count()
    if isinstance(devices, str):
        text = devices.strip()
        number = available if text in ("auto", "-1") else int(text) if text.isdecimal() else 0
    elif isinstance(devices, int) and not isinstance(devices, bool):
        number = available if devices == -1 else devices
    else:
        number = 0
    if number < 1:
        raise ConfigurationError(
            "devices must be a number of cards (an int or a string of digits), -1 or 'auto', but "
            f"it is {devices!r}. Which cards a process may use is chosen by "
            f"{environment.VISIBLE_MODULES}, not by a list of indices."
        )
    if number > available:
        raise ConfigurationError(
            f"devices={devices!r} asks for {number} cards, but this machine has {available}."
            + (
                " The emulated HPU has as many as LIGHTNING_GAUDI_EMULATOR_DEVICES says."
                if loading.is_emulated()
                else ""
            )
        )
    return number


def this_device() -> torch.device:
    """The one HPU of this process. Its index is always 0 (HABANA.md, "Many cards")."""
    return torch.device("hpu", 0)


def enable_dynamic_shapes() -> None:
    """Let the bridge compile ranges of shapes where they change."""
    loading.module("torch.hpu").enable_dynamic_shape()


def synchronize() -> None:
    """Wait until the device has done all it was given."""
    loading.module("torch.hpu").synchronize()


def memory_stats() -> dict[str, int]:
    """The device's memory statistics in bytes and counts, under the SDK's names.

    Empty where the software is not loaded, since asking would load it.
    """
    if not loading.is_loaded():
        return {}
    return dict(loading.module("torch.hpu").memory_stats())


def reset_peak_memory() -> None:
    """Let the peak of memory in use, ``MaxInUse``, begin with what is in use now."""
    if loading.is_loaded():
        loading.module("torch.hpu").reset_peak_memory_stats()


def name() -> str:
    """The card's name, such as ``"GAUDI2"``; says where it is emulated."""
    text = str(loading.module("torch.hpu").get_device_name())
    return f"{text} (emulated)" if loading.is_emulated() else text
