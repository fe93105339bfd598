"""What people and programs read."""

from __future__ import annotations

import json
from io import StringIO

from doctor.machines import gaudi, lazy
from rich.console import Console

from lightning_gaudi.doctor.checks import check_all
from lightning_gaudi.doctor.rendering import as_json, print_findings

BAD = gaudi(
    versions={"lightning": "2.5.5", "optimum-habana": "1.19.0"},
    variables=lazy(HABANA_VISIBLE_MODULES="[red]"),
)


def text_of(facts):
    out = StringIO()
    print_findings(check_all(facts), Console(file=out, width=90, highlight=False))
    return out.getvalue()


def test_a_line_for_each_and_remedies_below():
    lines = text_of(BAD).splitlines()
    assert lines[0].split() == ["ok", "Python", "3.11.7", "(/usr/bin/python3)"]
    # Aligned: all titles begin in one column.
    table = lines[: lines.index("")]
    assert {line[9] for line in table if line[0] != " "}.isdisjoint({" "})
    remedies = "\n".join(lines[lines.index("") :])
    assert remedies.index("fault: Lightning: 2.5.5") < remedies.index("warning: optimum-habana")
    assert '    $ pip install --upgrade "lightning>=2.5.6"' in remedies
    assert "HABANA_VISIBLE_MODULES='[red]': it must be module ids" in remedies
    assert lines[-1] == "The HPU is not usable as it is: 2 faults, 1 warning."


def test_a_good_machine_needs_no_remedies():
    text = text_of(gaudi())
    assert "expected:" not in text
    assert text.splitlines()[-1] == "The HPU is usable: 0 faults, 0 warnings."
    assert "\x1b" not in text


def test_json_has_stable_keys_and_plain_types():
    facts = BAD
    document = json.loads(json.dumps(as_json(facts, check_all(facts))))
    assert list(document) == ["version", "is_usable", "findings", "facts"]
    assert (document["version"], document["is_usable"]) == (1, False)
    for finding in document["findings"]:
        assert list(finding) == ["check", "level", "title", "found", "expected", "fix"]
        assert all(isinstance(value, str) for value in finding.values())
    assert document["facts"]["installed"]["versions"]["lightning"] == "2.5.5"
    assert document["facts"]["driver"]["cards"][0]["name"] == "accel0"
    assert document["facts"]["variables"]["HABANA_VISIBLE_MODULES"] == "[red]"
