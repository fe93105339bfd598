"""Checks of what is installed."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_gaudi.doctor import releases
from lightning_gaudi.doctor.findings import Finding, is_older, release_of
from lightning_gaudi.runtime.facts import Facts

_INSTALL_GUIDE = "https://docs.habana.ai/en/latest/Installation_Guide/index.html"


def check_python(facts: Facts) -> Iterator[Finding]:
    """Python is new enough."""
    found = f"{facts.installed.python} ({facts.installed.executable})"
    if is_older(facts.installed.python, releases.OLDEST_PYTHON):
        yield Finding(
            check="python",
            level="fault",
            title="Python",
            found=found,
            expected=f"{releases.OLDEST_PYTHON} or newer",
            fix="python3.11 -m venv .venv && . .venv/bin/activate",
        )
    else:
        yield Finding(check="python", level="ok", title="Python", found=found)


def check_software(facts: Facts) -> Iterator[Finding]:
    """The Gaudi software is there, or the emulator is asked for; and not both."""
    installed = facts.installed
    found = installed.bridge or installed.bridge_file
    if found is None:
        if facts.is_emulator_requested:
            found = "none; the emulated HPU takes its place"
            yield Finding(check="software", level="ok", title="Gaudi software", found=found)
            return
        yield Finding(
            check="software",
            level="fault",
            title="Gaudi software",
            found=f"no habana_frameworks in {installed.executable}",
            expected="the Gaudi software on a Gaudi machine, the emulated HPU on any other",
            fix=f"# on a Gaudi machine: {_INSTALL_GUIDE}\n"
            "export LIGHTNING_GAUDI_EMULATOR=1  # on any other",
        )
        return
    if installed.bridge is None or installed.bridge_file is None:
        what = (
            f"the package {installed.bridge_file}, but no distribution habana-torch-plugin"
            if installed.bridge is None
            else f"habana-torch-plugin {installed.bridge}, but no package habana_frameworks"
        )
        yield Finding(
            check="software",
            level="fault" if installed.bridge_file is None else "warning",
            title="Gaudi software",
            found=what,
            expected="both, as the Gaudi software's installer leaves them",
            fix="pip install --force-reinstall --no-deps habana-torch-plugin",
        )
    elif is_older(installed.bridge, releases.OLDEST_RELEASE):
        yield Finding(
            check="software",
            level="fault",
            title="Gaudi software",
            found=installed.bridge,
            expected=f"{releases.OLDEST_RELEASE} or newer, whose torch is {releases.OLDEST_TORCH}",
            fix=f"# {_INSTALL_GUIDE}",
        )
    else:
        yield Finding(check="software", level="ok", title="Gaudi software", found=installed.bridge)


def check_torch(facts: Facts) -> Iterator[Finding]:
    """Torch is there, new enough, Habana's own beside the Gaudi software, and its release's."""
    torch, bridge = facts.installed.torch, facts.installed.bridge
    has_software = facts.installed.bridge_file is not None
    if torch is None:
        yield Finding(
            check="torch",
            level="fault",
            title="torch",
            found="not installed",
            expected="torch",
            fix=_torch_fix(facts),
        )
        return
    emulates = facts.is_emulator_requested and not has_software
    oldest = releases.OLDEST_TORCH_FOR_EMULATOR if emulates else releases.OLDEST_TORCH
    if is_older(torch, oldest):
        yield Finding(
            check="torch",
            level="fault",
            title="torch",
            found=torch,
            expected=f"{oldest} or newer" + (" for the emulated HPU" if emulates else ""),
            fix=_torch_fix(facts),
        )
        return  # the same fix mends whatever else is wrong with it
    yield Finding(check="torch", level="ok", title="torch", found=torch)
    if not has_software:
        return
    if not releases.is_habanas(torch):
        yield Finding(
            check="torch_build",
            level="fault",
            title="torch's build",
            found=f"{torch}, which is not Habana's",
            expected="the torch that the Gaudi software came with, such as 2.6.0+hpu_1.21.0-...; "
            "something has replaced it (pip install of a package that pins torch, often)",
            fix=_torch_fix(facts),
        )
    if bridge is not None and is_older(bridge, releases.OLDEST_RELEASE):
        return  # a newer release brings its torch
    expected = None if bridge is None else releases.torch_for(bridge)
    if expected is not None and release_of(torch)[:2] != release_of(expected):
        yield Finding(
            check="torch_release",
            level="fault",
            title="torch's release",
            found=f"torch {torch} beside Gaudi software {bridge}",
            expected=f"torch {expected}",
            fix=_torch_fix(facts),
        )
    elif bridge is not None and expected is None:
        yield Finding(
            check="torch_release",
            level="note",
            title="torch's release",
            found=f"Gaudi software {bridge}, which this doctor does not know",
            expected=f"one of {', '.join(releases.TORCH_OF_RELEASE)}",
        )


def check_lightning(facts: Facts) -> Iterator[Finding]:
    """Lightning is new enough, under the name `lightning`, and there once."""
    versions = facts.installed.versions
    lightning, other = versions.get("lightning"), versions.get("pytorch-lightning")
    fix = f'pip install --upgrade "lightning>={releases.OLDEST_LIGHTNING}"'
    if lightning is None:
        found = "not installed"
        if other is not None:
            found += f"; pytorch-lightning {other} is, whose classes are others"
        yield Finding(
            check="lightning",
            level="fault",
            title="Lightning",
            found=found,
            expected="the package lightning: import lightning as L",
            fix=fix,
        )
    elif is_older(lightning, releases.OLDEST_LIGHTNING):
        yield Finding(
            check="lightning",
            level="fault",
            title="Lightning",
            found=lightning,
            expected=f"{releases.OLDEST_LIGHTNING} or newer",
            fix=fix,
        )
    else:
        yield Finding(check="lightning", level="ok", title="Lightning", found=lightning)
    if lightning is None or other is None:
        return
    is_same = lightning == other
    yield Finding(
        check="two_lightnings",
        level="note" if is_same else "warning",
        title="two Lightnings",
        found=f"pytorch-lightning {other} beside lightning {lightning}"
        + (", which brings it along" if is_same else ""),
        expected="scripts that import lightning only: a Trainer of one does not take the other's "
        "LightningModule, and knows no HPU",
        fix="grep -rnE '(import|from) pytorch_lightning' --include='*.py' ."
        if is_same
        else f"pip install pytorch-lightning=={lightning}",
    )


def check_predecessors(facts: Facts) -> Iterator[Finding]:
    """No other integration takes part."""
    versions = facts.installed.versions
    if "lightning-habana" in versions:
        yield Finding(
            check="lightning_habana",
            level="fault",
            title="lightning-habana",
            found=versions["lightning-habana"],
            expected="not there: it registers the names of this package with other classes, and "
            "breaks on Lightning 2.5.6 and newer",
            fix="pip uninstall --yes lightning-habana",
        )
    if "optimum-habana" in versions:
        yield Finding(
            check="optimum_habana",
            level="warning",
            title="optimum-habana",
            found=versions["optimum-habana"],
            expected="not there: it pins older Transformers and Diffusers, and replaces the "
            "forwards of their models once it is imported",
            fix="pip uninstall --yes optimum-habana",
        )


def check_optional(facts: Facts) -> Iterator[Finding]:
    """Transformers and Diffusers, where they are installed, are new enough."""
    for name, oldest in (
        ("transformers", releases.OLDEST_TRANSFORMERS),
        ("diffusers", releases.OLDEST_DIFFUSERS),
    ):
        version = facts.installed.versions.get(name)
        if version is None:
            yield Finding(
                check=name,
                level="note",
                title=name.capitalize(),
                found=f"not installed; the modules for {name.capitalize()} models need it",
                fix=f'pip install "lightning-gaudi[{name}]"',
            )
        elif is_older(version, oldest):
            yield Finding(
                check=name,
                level="warning",
                title=name.capitalize(),
                found=version,
                expected=f"{oldest} or newer",
                fix=f'pip install --upgrade "{name}>={oldest}"',
            )
        else:
            yield Finding(check=name, level="ok", title=name.capitalize(), found=version)


def _torch_fix(facts: Facts) -> str:
    if facts.installed.bridge_file is None:
        return f'pip install "torch>={releases.OLDEST_TORCH_FOR_EMULATOR}"'
    return (
        "# reinstall Habana's torch with the Gaudi software's installer:\n"
        "#   https://docs.habana.ai/en/latest/Installation_Guide/Driver_Installation.html\n"
        "./habanalabs-installer.sh install -t pytorch"
    )
