"""``habana_frameworks.torch.hpex``: operations that a card runs fused.

They are made of PyTorch's own operations here, so that autograd, the books and captures see them;
a card has one operation in their place.
"""

from lightning_gaudi.emulator.missing import name_missing

__getattr__ = name_missing("habana_frameworks.torch.hpex")
