"""Sampling: Transformers' own distributions, and rows that do not depend on each other."""

from __future__ import annotations

import pytest
import torch
from modules.generation.models import batch_of, make_model, make_prompts, stock_tokens
from modules.generation.runs import generated
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lightning_gaudi.modules.generation.sampling import draw, filtered, row_seed, uniforms
from lightning_gaudi.modules.generation.settings import GenerationSettings

LENGTHS = (5, 12, 3, 9, 7, 11, 2)
SAMPLING = {"do_sample": True, "temperature": 1.5, "top_k": 12, "top_p": 0.9, "seed": 3}


def settings(**options):
    return GenerationSettings(max_new_tokens=4, do_sample=True, **options)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 5, 100])
@pytest.mark.parametrize("top_p", [None, 1e-9, 0.05, 0.7, 1.0])
def test_filters_against_transformers(temperature, top_k, top_p):
    scores = torch.randn(6, 40) * 3
    scores[:, 7] = scores[:, 11]  # a tie
    expected = TemperatureLogitsWarper(temperature)(None, scores.clone())
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p is not None and top_p < 1.0:
        expected = TopPLogitsWarper(top_p)(None, expected)
    found = filtered(scores, settings(temperature=temperature, top_k=top_k, top_p=top_p))
    assert torch.equal(found, expected)


def test_draws_follow_the_distribution():
    scores = torch.tensor([[0.0, 1.0, -torch.inf, 2.0, 0.5]])
    numbers = (torch.arange(10_000) + 0.5) / 10_000
    tokens = draw(scores.expand(10_000, -1), numbers)
    frequencies = torch.bincount(tokens, minlength=5) / 10_000
    torch.testing.assert_close(frequencies, scores[0].softmax(0), atol=2e-4, rtol=0)
    assert (tokens.diff() >= 0).all()


@pytest.mark.parametrize("place", [0, 3, 6])
def test_only_what_has_probability_is_drawn(place):
    """Also at both ends of the numbers, whatever rounding does to the cumulated sum."""
    scores = torch.full((2, 7), -torch.inf)
    scores[:, place] = 1.0
    assert draw(scores, torch.tensor([0.0, 1.0])).tolist() == [place, place]


def test_numbers_of_a_row_are_its_own():
    together = uniforms([5, -9, 2**64 + 7], 4)
    assert torch.equal(together[1:2], uniforms([-9], 4))
    assert torch.equal(together[2:], uniforms([7], 4))
    assert not torch.equal(together[0], together[1])
    assert row_seed(0, [1, 2]) != row_seed(1, [1, 2]) != row_seed(0, [2, 1])
    assert row_seed(4, [1, 2]) == row_seed(4, [1, 2])


def test_rows_do_not_depend_on_their_mates():
    model, prompts = make_model(), make_prompts(LENGTHS)
    options = {"buckets": [16], "batch_size": 4, **SAMPLING}
    expected = generated(model, [batch_of(prompts)], **options)
    assert len({tuple(row) for row in expected}) == len(prompts)
    assert expected != stock_tokens(model, prompts, 20)
    assert generated(model, [batch_of(prompts[::-1])], **options) == expected[::-1]
    assert generated(model, [batch_of([p]) for p in prompts], **options) == expected
    mixed = [batch_of(prompts[2:5]), batch_of(prompts[:2]), batch_of(prompts[5:])]
    found = generated(model, mixed, **options)
    assert found == expected[2:5] + expected[:2] + expected[5:]


def test_seeds():
    model, prompts = make_model(), make_prompts((6, 6))
    first = generated(model, [batch_of(prompts)], **SAMPLING)
    assert generated(model, [batch_of(prompts)], **SAMPLING) == first
    assert generated(model, [batch_of(prompts)], **{**SAMPLING, "seed": 4}) != first
    same = [prompts[0]] * 3
    once, again, _ = generated(model, [batch_of(same)], **SAMPLING)
    assert once == again == first[0]
    seeds = {"seed": torch.tensor([1, 2, 1])}
    one, two, three = generated(model, [batch_of(same) | seeds], **SAMPLING)
    assert one == three != two


def test_low_temperature_is_greedy():
    model, prompts = make_model(), make_prompts(LENGTHS)
    expected = stock_tokens(model, prompts, 20)
    options = {"do_sample": True, "temperature": 1e-5}
    assert generated(model, [batch_of(prompts)], **options) == expected
    assert generated(model, [batch_of(prompts)], do_sample=True, top_k=1) == expected
    assert generated(model, [batch_of(prompts)], do_sample=True, top_p=1e-6) == expected


def test_first_tokens_have_the_models_probabilities():
    """Against the softmax of stock logits, over many seeds."""
    model, (prompt,) = make_model(), make_prompts((6,))
    with torch.no_grad():
        scores = model(torch.tensor([prompt])).logits[:, -1]
    expected = TopPLogitsWarper(0.9)(None, TemperatureLogitsWarper(3.0)(None, scores)).softmax(-1)
    num_rows = 2000
    batch = batch_of([prompt] * num_rows) | {"seed": list(range(num_rows))}
    options = {"do_sample": True, "temperature": 3.0, "top_p": 0.9}
    rows = generated(model, [batch], 1, **options)
    tokens = torch.tensor([row[0] for row in rows])
    frequencies = torch.bincount(tokens, minlength=scores.shape[1]) / num_rows
    assert ((frequencies > 0) <= (expected[0] > 0)).all()
    torch.testing.assert_close(frequencies, expected[0], atol=0.04, rtol=0)
