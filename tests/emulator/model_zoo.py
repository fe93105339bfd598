"""Tiny models from config, with the inputs of one forward; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 50


@dataclass(frozen=True)
class Case:
    """A model, and what its forward takes.

    Attributes:
        module: On the CPU, in float32.
        inputs: Keyword arguments of the forward.
    """

    module: nn.Module
    inputs: dict[str, Any]


def _ids(batch: int = 3, length: int = 7) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, length))


def _ragged(batch: int = 3, length: int = 7) -> Tensor:
    """A mask of sequences of different lengths, padded on the right."""
    lengths = torch.tensor([length, length - 3, 2])[:batch]
    return (torch.arange(length) < lengths[:, None]).long()


_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "num_labels": 3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def bert(attention: str) -> Case:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(**_ENCODER, attn_implementation=attention)
    labels = torch.tensor([0, 2, 1])
    inputs = {"input_ids": _ids(), "attention_mask": _ragged(), "labels": labels}
    return Case(BertForSequenceClassification(config), inputs)


def roberta(attention: str) -> Case:
    from transformers import RobertaConfig, RobertaForMaskedLM

    config = RobertaConfig(**_ENCODER, attn_implementation=attention)
    ids = _ids()
    inputs = {"input_ids": ids, "attention_mask": _ragged(), "labels": ids.clone()}
    return Case(RobertaForMaskedLM(config), inputs)


def distilbert(attention: str) -> Case:
    from transformers import DistilBertConfig, DistilBertForTokenClassification

    config = DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=32,
        max_position_embeddings=32,
        dropout=0.0,
        attention_dropout=0.0,
        attn_implementation=attention,
    )
    labels = torch.where(_ragged() > 0, _ids() % 2, -100)
    inputs = {"input_ids": _ids(), "attention_mask": _ragged(), "labels": labels}
    return Case(DistilBertForTokenClassification(config), inputs)


def t5(attention: str) -> Case:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        attn_implementation=attention,
    )
    inputs = {"input_ids": _ids(), "attention_mask": _ragged(), "labels": _ids(3, 5)}
    return Case(T5ForConditionalGeneration(config), inputs)


def gpt2(attention: str) -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=1,
        attn_implementation=attention,
    )
    ids = _ids()
    inputs = {"input_ids": ids, "attention_mask": _ragged(), "labels": ids.clone()}
    return Case(GPT2LMHeadModel(config), inputs)


def llama(attention: str) -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
        attn_implementation=attention,
    )
    ids = _ids()
    inputs = {"input_ids": ids, "attention_mask": _ragged(), "labels": ids.clone()}
    return Case(LlamaForCausalLM(config), inputs)


def vit(attention: str) -> Case:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=attention,
    )
    inputs = {"pixel_values": torch.randn(2, 3, 16, 16), "labels": torch.tensor([0, 2])}
    return Case(ViTForImageClassification(config), inputs)


def whisper(attention: str) -> Case:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=8,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=10,
        max_target_positions=12,
        dropout=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        attn_implementation=attention,
    )
    inputs = {"input_features": torch.randn(2, 8, 20), "labels": _ids(2, 5)}
    return Case(WhisperForConditionalGeneration(config), inputs)


def clip(attention: str) -> Case:
    from transformers import CLIPConfig, CLIPModel

    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = CLIPConfig(
        text_config={**tower, "vocab_size": VOCABULARY, "max_position_embeddings": 12},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=8,
        attn_implementation=attention,
    )
    inputs = {
        "input_ids": _ids(),
        "attention_mask": _ragged(),
        "pixel_values": torch.randn(3, 3, 16, 16),
        "return_loss": True,
    }
    return Case(CLIPModel(config), inputs)


def unet2d() -> Case:
    from diffusers import UNet2DModel

    module = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )
    return Case(module, {"sample": torch.randn(2, 3, 8, 8), "timestep": torch.tensor([3, 11])})


def unet2d_condition() -> Case:
    from diffusers import UNet2DConditionModel

    module = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    inputs = {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor(7),
        "encoder_hidden_states": torch.randn(2, 5, 12),
    }
    return Case(module, inputs)


def sd3() -> Case:
    from diffusers import SD3Transformer2DModel

    module = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "pooled_projections": torch.randn(2, 10),
        "timestep": torch.tensor([100.0, 7.0]),
    }
    return Case(module, inputs)


def flux() -> Case:
    from diffusers import FluxTransformer2DModel

    module = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )
    inputs = {
        "hidden_states": torch.randn(2, 6, 4),
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "pooled_projections": torch.randn(2, 10),
        "timestep": torch.tensor([0.5, 0.1]),
        "guidance": torch.tensor([3.5, 3.5]),
        "img_ids": torch.rand(6, 3),
        "txt_ids": torch.zeros(5, 3),
    }
    return Case(module, inputs)


def autoencoder_kl() -> Case:
    from diffusers import AutoencoderKL

    module = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    return Case(module, {"sample": torch.randn(2, 3, 16, 16), "sample_posterior": False})


LANGUAGE_AND_VISION: dict[str, Callable[[str], Case]] = {
    "bert": bert,
    "distilbert": distilbert,
    "roberta": roberta,
    "t5": t5,
    "gpt2": gpt2,
    "llama": llama,
    "vit": vit,
    "whisper": whisper,
    "clip": clip,
}
DIFFUSION: dict[str, Callable[[], Case]] = {
    "unet2d": unet2d,
    "unet2d_condition": unet2d_condition,
    "sd3": sd3,
    "flux": flux,
    "autoencoder_kl": autoencoder_kl,
}
