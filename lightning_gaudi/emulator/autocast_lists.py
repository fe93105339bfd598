"""Which ops ``torch.autocast("hpu")`` runs in which dtype.

The lists are the bridge's (1.19.0, ``hpu_autocast``; docs.habana.ai, "Mixed Precision Training with
PyTorch Autocast"). Where an op is on several, lower precision goes before float32 and float32
before promotion. ``PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST`` and ``PT_HPU_AUTOCAST_FP32_OPS_LIST``
name files, an op a line, that take the place of the first two.
"""

from __future__ import annotations

import os
from enum import Enum, auto
from pathlib import Path


class CastPolicy(Enum):
    """What happens to an op's floating-point arguments."""

    LOWER = auto()
    """All are cast to autocast's dtype."""
    LOWER_FIRST = auto()
    """The first is cast to autocast's dtype; weights and statistics stay."""
    FP32 = auto()
    """All are cast to float32."""
    PROMOTE = auto()
    """All are cast to float32 where one of them is, else to autocast's dtype."""


LOWER_VARIABLE = "PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST"
FP32_VARIABLE = "PT_HPU_AUTOCAST_FP32_OPS_LIST"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


DEFAULT_LOWER = _names(
    """
    addmm addbmm batch_norm baddbmm bmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d dot dropout feature_dropout group_norm instance_norm layer_norm leaky_relu
    linear matmul mean mm mul mv softmax log_softmax scaled_dot_product_attention
    """
)
DEFAULT_FP32 = _names(
    """
    acos addcdiv asin atan2 bilinear binary_cross_entropy binary_cross_entropy_with_logits cdist
    cosh cosine_embedding_loss cosine_similarity cross_entropy_loss dist div divide embedding
    embedding_bag erfinv exp expm1 hinge_embedding_loss huber_loss kl_div l1_loss log log10 log1p
    log2 logsumexp margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss nll_loss
    pdist poisson_nll_loss pow reciprocal renorm rsqrt sinh smooth_l1_loss soft_margin_loss
    softplus tan topk triplet_margin_loss truediv true_divide
    """
)
PROMOTE = _names("add addcmul addcdiv cat div exp mul pow sub iadd truediv stack")
_LOWER_FIRST = frozenset({"layer_norm", "group_norm", "instance_norm", "batch_norm"})


def load_policies() -> dict[str, CastPolicy]:
    """The policy of each op on a list, by its name without overload.

    Raises:
        FileNotFoundError: A variable names a file that is not there.
    """
    policies = dict.fromkeys(PROMOTE, CastPolicy.PROMOTE)
    policies.update(dict.fromkeys(_load(FP32_VARIABLE, DEFAULT_FP32), CastPolicy.FP32))
    for name in _load(LOWER_VARIABLE, DEFAULT_LOWER):
        policies[name] = CastPolicy.LOWER_FIRST if name in _LOWER_FIRST else CastPolicy.LOWER
    return policies


def _load(variable: str, default: frozenset[str]) -> frozenset[str]:
    path = os.environ.get(variable)
    if not path:
        return default
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{variable} must name a file with the name of an op on each line, but there is no "
            f"file {path!r}. Correct the path, or unset the variable to use the default list."
        )
    return _names(Path(path).read_text("utf-8"))
