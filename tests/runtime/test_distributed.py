"""What the processes of a run tell each other before they connect."""

from __future__ import annotations

import threading

import pytest
from torch.distributed import HashStore

from lightning_gaudi.errors import ProcessGroupError
from lightning_gaudi.runtime import distributed

DIFFERENT = "must have the same mode, but rank 0 .* has 'lazy' and rank 1 .* has 'eager'"


def test_rank_0_which_holds_the_store_stays_until_the_others_have_read_the_verdict() -> None:
    store, errors = HashStore(), []

    def rank_0() -> None:
        with pytest.raises(ProcessGroupError, match=DIFFERENT) as raised:
            distributed.agree(store, 0, 2, {"mode": "lazy"})
        errors.append(raised.value)

    thread = threading.Thread(target=rank_0, daemon=True)
    thread.start()
    store.set("settings/1", '{"host": "other", "settings": {"mode": "eager"}}')
    assert b"same mode" in store.get("verdict")
    thread.join(0.3)
    assert thread.is_alive()  # it would take the store along
    with pytest.raises(ProcessGroupError, match=DIFFERENT):
        distributed.agree(store, 1, 2, {"mode": "eager"})
    thread.join(5)
    assert len(errors) == 1


def test_rank_0_does_not_wait_for_ever_for_one_that_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "_HEARD_S", 0.05)
    store = HashStore()
    store.set("settings/1", '{"host": "other", "settings": {"mode": "eager"}}')
    with pytest.raises(ProcessGroupError, match=DIFFERENT):
        distributed.agree(store, 0, 2, {"mode": "lazy"})


def test_the_same_settings_are_no_matter() -> None:
    store = HashStore()
    store.set("settings/1", '{"host": "other", "settings": {"mode": "lazy"}}')
    distributed.agree(store, 0, 2, {"mode": "lazy"})
