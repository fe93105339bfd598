"""Tiny pipelines of every family: random weights from a config, tokenizers made here."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import diffusers
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

diffusers.utils.logging.set_verbosity_error()

WORDS = ["a", "the", "red", "blue", "small", "cat", "dog", "house", "of", "on", "bad", "blurry"]
MAX_LENGTH = 12


@functools.cache
def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's kind of tokenizer with a vocabulary of letters and a few words."""
    letters = [chr(c) for c in range(33, 127)]
    merges: list[str] = []
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merge = f"{parts[0]} {parts[1]}"
            if merge not in merges:
                merges.append(merge)
                vocabulary.append(parts[0] + parts[1])
            parts = [parts[0] + parts[1], *parts[2:]]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: number for number, token in enumerate(dict.fromkeys(vocabulary))}
    with tempfile.TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab_file.write_text(json.dumps(ids))
        merges_file.write_text("\n".join(["#version: 0.2", *merges, ""]))
        return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_LENGTH)


@functools.cache
def t5_tokenizer() -> PreTrainedTokenizerFast:
    """T5's kind of tokenizer: words, an end-of-sentence token, padding."""
    ids = {token: number for number, token in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_LENGTH,
    )


def clip_encoder(cls: type = CLIPTextModel, seed: int = 1, projection: int = 16):
    """A CLIP text encoder of one layer, hidden size 16."""
    tokenizer = clip_tokenizer()
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=projection,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return cls(config).eval()


def t5_encoder():
    """A T5 encoder of one layer, hidden size 16."""
    torch.manual_seed(2)
    config = T5Config(
        vocab_size=len(t5_tokenizer()), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    return T5EncoderModel(config).eval()


def vae(latent_channels: int = 4, **config):
    """A VAE that halves the size."""
    torch.manual_seed(3)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=16,
        layers_per_block=1,
        **config,
    ).eval()


def unet(in_channels: int = 4, **config):
    """A conditional U-Net of two blocks for 8x8 latents."""
    torch.manual_seed(4)
    options = {"cross_attention_dim": 16, **config}
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=4,
        **options,
    ).eval()


def scheduler(name: str = "DDIMScheduler", **config):
    """A scheduler of diffusers, with Stable Diffusion's betas where it has betas."""
    cls = getattr(diffusers, name)
    if name.startswith("FlowMatch"):
        return cls(**config)
    betas: dict = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if name == "DDIMScheduler":
        betas |= {"clip_sample": False, "steps_offset": 1}
    return cls(**{**betas, **config})


def stable_diffusion(cls: type = diffusers.StableDiffusionPipeline, name="DDIMScheduler", **config):
    """Stable Diffusion: 16x16 images."""
    return cls(
        vae=vae(),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
        unet=unet(**config),
        scheduler=scheduler(name, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(name: str = "EulerDiscreteScheduler"):
    """SDXL: two text encoders, added conditions."""
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_encoder(),
        text_encoder_2=clip_encoder(CLIPTextModelWithProjection, seed=5),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 16,
            use_linear_projection=True,
        ),
        scheduler=scheduler(name),
        add_watermarker=False,
    )


def unconditional(cls: type = diffusers.DDPMPipeline, name: str = "DDPMScheduler"):
    """A U-Net without conditions: 8x8 images."""
    torch.manual_seed(6)
    model = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4,
    ).eval()
    return cls(unet=model, scheduler=getattr(diffusers, name)())


def stable_diffusion_3():
    """SD3: three text encoders, a transformer, flow matching."""
    torch.manual_seed(7)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=16,
    ).eval()
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=scheduler("FlowMatchEulerDiscreteScheduler"),
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip_encoder(CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_encoder(CLIPTextModelWithProjection, seed=5),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=T5EncoderModel(
            T5Config(
                vocab_size=len(t5_tokenizer()),
                d_model=32,
                d_kv=8,
                d_ff=16,
                num_layers=1,
                num_heads=2,
            )
        ).eval(),
        tokenizer_3=t5_tokenizer(),
    )


def flux():
    """Flux: packed latents, rotary positions, a guidance embedding."""
    torch.manual_seed(8)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 2, 2),
        guidance_embeds=True,
    ).eval()
    return diffusers.FluxPipeline(
        scheduler=scheduler("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True),
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


def dit():
    """DiT: class labels."""
    torch.manual_seed(9)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
    ).eval()
    return diffusers.DiTPipeline(transformer=transformer, vae=vae(), scheduler=scheduler())


def pixart():
    """PixArt-alpha: T5 with an attention mask."""
    torch.manual_seed(10)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        caption_channels=16,
        norm_num_groups=4,
        num_embeds_ada_norm=1000,
    ).eval()
    return diffusers.PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=vae(),
        transformer=transformer,
        scheduler=scheduler("DPMSolverMultistepScheduler"),
    )
