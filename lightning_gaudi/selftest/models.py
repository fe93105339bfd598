"""Checks with tiny Transformers models, made on the spot."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gaudi.callbacks import HPUGraphCallback
from lightning_gaudi.graphs import GraphedForward
from lightning_gaudi.runtime import environment
from lightning_gaudi.runtime import optimizers as hpu_optimizers
from lightning_gaudi.selftest.checking import (
    Figures,
    SkippedError,
    expect,
    expect_close,
    hpu,
    settle,
)
from lightning_gaudi.selftest.lightning_runs import trainer


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise SkippedError(
            'Transformers is not installed: pip install "lightning-gaudi[transformers]"'
        ) from error
    return transformers


def attention_masks(figures: Figures) -> None:
    """A captured BERT must read each batch's own mask."""
    transformers = _transformers()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
    )
    on_host = transformers.BertModel(config).eval()
    on_device = copy.deepcopy(on_host).to(hpu())
    graphed = GraphedForward(on_device)
    ids = torch.randint(64, (4, 12))
    full, padded = torch.ones(4, 12, dtype=torch.long), torch.ones(4, 12, dtype=torch.long)
    padded[1, 7:], padded[2, 3:] = 0, 0
    for name, mask in {"full": full, "padded": padded, "full again": full}.items():
        with torch.no_grad():
            expected = on_host(input_ids=ids, attention_mask=mask).last_hidden_state
            found = graphed(input_ids=ids.to(hpu()), attention_mask=mask.to(hpu()))
        kept = mask.bool()
        actual = found.last_hidden_state.cpu()
        expect_close(figures, name, actual[kept], expected[kept], 5e-2)
    figures["captures"] = graphed.stats.captures
    expect(graphed.stats.captures == 1, f"{graphed.stats.captures} captures, expected 1")


def generation(figures: Figures) -> None:
    """Prompts of several lengths, against stock ``generate`` on the CPU one by one."""
    transformers = _transformers()
    from lightning_gaudi.modules.generation import TextGenerationModule

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
        pad_token_id=0,
        eos_token_id=None,
        bos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    prompts = [[3, 5, 7], [4, 9, 11, 13, 2], [8], [6, 6, 1, 2]]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        tokens = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False
        )
        expected.append(tokens[0, len(prompt) :].tolist())
    module = TextGenerationModule(copy.deepcopy(model), max_new_tokens=10, buckets=[8])
    callbacks: list[Any] = [HPUGraphCallback()] if environment.lazy_mode() == "1" else []
    batch = {"input_ids": [torch.tensor(prompt) for prompt in prompts]}
    rows: Any = [batch]
    data: Any = DataLoader(rows, batch_size=None)
    found = trainer(callbacks=callbacks).predict(module, data)
    assert found is not None
    tokens = found[0]["token_ids"]  # type: ignore[call-overload]
    pairs = [
        (a, b)
        for row, wanted in zip(tokens, expected, strict=True)
        for a, b in zip(row, wanted, strict=True)
    ]
    agreement = sum(a == b for a, b in pairs) / len(pairs)
    figures["tokens that agree"] = agreement
    figures["first tokens that agree"] = [
        row[0] == wanted[0] for row, wanted in zip(tokens, expected, strict=True)
    ]
    if callbacks:
        figures["captures"] = callbacks[0].stats.captures
    # A card rounds differently: a near tie may go the other way, and the rest of a row with it.
    expect(agreement >= 0.75, f"only {agreement:.0%} of the tokens are those of stock generate")


def fused_adamw(figures: Figures) -> dict[str, float]:
    """The answer: largest differences of weights after 10 steps at a learning rate of 0.01.

    With a tiny ``eps`` they should be rounding only. The fused one adds it elsewhere (see
    `runtime.optimizers`), which a larger one shows.
    """
    differences = {}
    for eps in (1e-12, 1e-6):
        for decay in (0.0, 0.1):
            settings = {"lr": 0.01, "eps": eps, "weight_decay": decay}
            difference = _difference_after(10, settings)
            differences[f"eps={eps:g}, weight_decay={decay:g}"] = difference
    return differences


def _difference_after(steps: int, settings: dict[str, Any]) -> float:
    torch.manual_seed(0)
    nets = [nn.Linear(16, 16)]
    nets.append(copy.deepcopy(nets[0]).to(hpu()))
    optimizers = [
        torch.optim.AdamW(nets[0].parameters(), **settings),
        hpu_optimizers.fused_adamw(nets[1].parameters(), **settings),
    ]
    for _ in range(steps):
        x = torch.randn(8, 16)
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            net(x.to(net.weight.device)).square().mean().backward()
            optimizer.step()
        settle()
    difference: Tensor = nets[1].weight.detach().cpu() - nets[0].weight.detach()
    return float(difference.abs().max())
