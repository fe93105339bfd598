"""Which modules FSDP shards as groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training import Classifier, TiedGRU, TinyTransformer, conv_net, mlp

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.sharding.policy import choose_groups, outer_groups

INNER = ["layers.0.0", "layers.0.2", "layers.1.0", "layers.1.2"]


class Blocks(nn.Module):
    """Two kinds of blocks in lists, with what lies around them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.layers = nn.ModuleList(mlp() for _ in range(2))
        self.ends = nn.ModuleDict({"first": nn.Linear(4, 4), "last": nn.Bilinear(4, 4, 4)})
        self.head = nn.Linear(4, 5)


def groups(module: nn.Module, policy: object = None) -> list[str]:
    chosen = choose_groups(module, policy)  # type: ignore[arg-type]
    modules = dict(module.named_modules())
    assert all(modules[path] is found for path, found in chosen.items())
    return list(chosen)


def test_blocks_that_repeat_are_groups() -> None:
    # Not the two Linears inside each block, nor the two ends, whose classes differ.
    assert groups(Blocks()) == ["layers.0", "layers.1"]
    assert groups(Classifier(mlp())) == ["network.0", "network.2"]
    assert groups(Classifier(conv_net())) == []
    assert groups(Classifier(TinyTransformer())) == [
        "network.encoder.layers.0",
        "network.encoder.layers.1",
    ]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        # Inner ones first, or their parameters would be the outer one's.
        (["layers.*", "head"], [*INNER, "layers.0", "layers.1", "head"]),
        ({nn.Embedding}, ["embedding"]),
        (
            {"Linear"},
            [*INNER, "ends.first", "head"],
        ),
        (["layers.?", "Embedding"], ["layers.0", "layers.1", "embedding"]),
        ("head", ["head"]),
        (lambda module: isinstance(module, nn.Bilinear), ["ends.last"]),
    ],
    ids=["nested", "class", "class-name", "paths", "one", "function"],
)
def test_policies(policy: object, expected: list[str]) -> None:
    assert groups(Blocks(), policy) == expected


def test_a_class_stands_for_its_subclasses() -> None:
    assert groups(Classifier(TiedGRU()), {nn.RNNBase}) == ["network.gru"]


def test_tied_weights_belong_to_the_group_around_them() -> None:
    net = TiedGRU()
    assert groups(net, {nn.Embedding, nn.GRU, nn.Linear}) == ["gru"]
    # Tied within a group they may stay.
    assert groups(Classifier(net), {TiedGRU}) == ["network"]
    blocks = Blocks()
    blocks.layers[1][0].weight = blocks.layers[0][0].weight
    assert groups(blocks) == []


def test_outer_groups() -> None:
    assert list(outer_groups(Blocks())) == [
        "embedding",
        "layers.0",
        "layers.1",
        "ends.first",
        "ends.last",
        "head",
    ]
    assert list(outer_groups(Classifier(mlp()))) == ["network"]


def test_outer_groups_that_share_a_weight_are_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"'embedding\.weight' is in several of embedding, gru, output: it"
    ):
        outer_groups(TiedGRU())


def test_a_parameter_outside_all_modules_is_refused() -> None:
    net = Classifier(mlp())
    net.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ConfigurationError, match=r"'scale' is in none of network: it would not"):
        outer_groups(net)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({nn.Conv2d, "Block"}, r"\((Conv2d, Block|Block, Conv2d)\) names no module with param"),
        (
            ["layers"],
            r"\(layers\) names no module with parameters in Blocks.* classes Bilinear, Emb",
        ),
        (lambda module: False, r"\(a function\) names no module"),
        ([], r"\(nothing\) names no module .* at paths such as 'embedding', 'layers\.0', "),
        ([3], r"auto_wrap_policy takes classes of modules, their names, paths .* it has 3\."),
        ([torch.Tensor], r"but it has <class 'torch\.Tensor'>"),
    ],
    ids=["absent", "list", "function", "empty", "number", "no-module"],
)
def test_policies_that_name_nothing(policy: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        groups(Blocks(), policy)


def test_a_module_without_parameters() -> None:
    with pytest.raises(ConfigurationError, match=r'Classifier has no parameters.*strategy="gaudi"'):
        groups(Classifier(nn.ReLU()))
