"""Checks of the driver, the cards, and of loading the software."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from lightning_gaudi.doctor.findings import Finding, release_of
from lightning_gaudi.runtime import environment
from lightning_gaudi.runtime.facts import EMULATED_CARDS, Facts


def _emulates(facts: Facts) -> bool:
    return facts.is_emulator_requested and facts.installed.bridge_file is None


def check_driver(facts: Facts) -> Iterator[Finding]:
    """The kernel module is there, of the software's release, and hl-smi answers."""
    driver = facts.driver
    if _emulates(facts):
        return
    if not driver.is_loaded:
        # Without the software as well this is a machine that never was to have a card.
        yield Finding(
            check="driver",
            level="note" if facts.installed.bridge_file is None else "fault",
            title="driver",
            found="the kernel module habanalabs is not loaded",
            expected="the driver of the Gaudi software's release",
            fix="sudo modprobe habanalabs && hl-smi",
        )
        return
    found = driver.version or "loaded; it does not say its version"
    bridge = facts.installed.bridge
    if driver.version and bridge and release_of(driver.version) != release_of(bridge):
        yield Finding(
            check="driver",
            level="warning",
            title="driver",
            found=f"driver {found} beside Gaudi software {bridge}",
            expected="both of one release",
            fix="sudo ./habanalabs-installer.sh upgrade -t base",
        )
    else:
        yield Finding(check="driver", level="ok", title="driver", found=found)
    if driver.hl_smi_error:
        yield Finding(
            check="hl_smi",
            level="warning",
            title="hl-smi",
            found=f"{driver.hl_smi} fails: {driver.hl_smi_error}",
            expected="a list of the cards",
            fix="sudo dmesg | grep -i habanalabs | tail -20",
        )


def check_cards(facts: Facts) -> Iterator[Finding]:
    """There are cards, all in order and open to this user."""
    if _emulates(facts):
        number = facts.variables.get(EMULATED_CARDS, "1")
        if not number.isdecimal() or int(number) < 1:
            yield Finding(
                check="cards",
                level="fault",
                title="cards",
                found=f"{EMULATED_CARDS}={number!r}",
                expected="a whole number of 1 or more",
                fix=f"export {EMULATED_CARDS}=1",
            )
        else:
            yield Finding(check="cards", level="ok", title="cards", found=f"{number}, emulated")
        return
    cards = facts.driver.cards
    if not cards:
        yield Finding(
            check="cards",
            level="note" if facts.installed.bridge_file is None else "fault",
            title="cards",
            found="none under /sys/class/accel",
            expected="the cards of a Gaudi machine; in a container they must be passed on",
            fix="docker run --runtime=habana -e HABANA_VISIBLE_DEVICES=all ...",
        )
        return
    kinds = Counter([card.pci_device for card in cards])
    names = ", ".join(f"{count} with PCI id {kind or '?'}" for kind, count in kinds.items())
    yield Finding(check="cards", level="ok", title="cards", found=names)
    closed = [card.name for card in cards if not card.is_accessible]
    if closed:
        yield Finding(
            check="card_access",
            level="fault" if len(closed) == len(cards) else "warning",
            title="access to cards",
            found=f"this user may not open {', '.join(closed)} under /dev/accel",
            expected="read and write permission",
            fix="ls -l /dev/accel && id",
        )
    broken = [
        f"{card.name} is {card.status}" for card in cards if card.status not in ("", "operational")
    ]
    if broken:
        yield Finding(
            check="card_status",
            level="warning",
            title="state of cards",
            found=", ".join(broken),
            expected="operational",
            fix="hl-smi && sudo dmesg | grep -i habanalabs | tail -20",
        )


def check_visible_cards(facts: Facts) -> Iterator[Finding]:
    """``HABANA_VISIBLE_MODULES`` names cards, each once, and no more than there are."""
    value = facts.variables.get(environment.VISIBLE_MODULES)
    if value is None or value in ("", "all"):
        return
    names = [name.strip() for name in value.split(",")]
    number = _num_cards(facts)
    problem = ""
    if not all(name.isdecimal() for name in names):
        problem = "it must be module ids separated by commas, or all"
    elif len(set(names)) < len(names):
        problem = "it names a card twice"
    elif len(names) > number:
        problem = f"it names {len(names)} cards, but there are {number}"
    if problem:
        yield Finding(
            check="visible_modules",
            level="fault",
            title="visible cards",
            found=f"{environment.VISIBLE_MODULES}={value!r}: {problem}",
            expected="such as 0,1,2,3; unset for all cards",
            fix=f"unset {environment.VISIBLE_MODULES}",
        )
    else:
        yield Finding(
            check="visible_modules", level="ok", title="visible cards", found=", ".join(names)
        )


def check_loading(facts: Facts) -> Iterator[Finding]:
    """The software can be loaded."""
    loading = facts.loading
    if loading is None:
        return
    if loading.error:
        yield Finding(
            check="loading",
            level="fault",
            title="loading it",
            found=loading.error,
            expected="import habana_frameworks.torch.core works",
            fix='python -c "import habana_frameworks.torch.core"',
        )
        return
    mode = "lazy" if loading.is_lazy else "eager"
    yield Finding(
        check="loading",
        level="ok",
        title="loading it",
        found=f"in {loading.seconds:.1f} s, in {mode} mode; cards: {loading.num_cards}",
    )


def _num_cards(facts: Facts) -> int:
    if not _emulates(facts):
        return len(facts.driver.cards)
    number = facts.variables.get(EMULATED_CARDS, "1")
    return int(number) if number.isdecimal() else 1
