"""A pipeline and a LoRA of Z-Image-Turbo's real shapes with random weights: times are real, pictures are not."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

ROOT = Path(__file__).parent.parent

TRANSFORMER = {
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "cap_feat_dim": 2560,
    "dim": 3840,
    "n_heads": 30,
    "n_kv_heads": 30,
    "n_layers": 30,
    "n_refiner_layers": 2,
}
TEXT_ENCODER = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
SMALL = (
    {"dim": 384, "n_heads": 3, "n_kv_heads": 3, "n_layers": 2, "cap_feat_dim": 64},
    {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 4096,
    },
    {"block_out_channels": [32, 32, 64, 64]},
)


def random_pipeline(device: str, dtype: torch.dtype, *, small: bool = False) -> Any:
    """Return a pipeline of the real shapes whose random weights keep every number finite."""
    shapes = [TRANSFORMER, TEXT_ENCODER, VAE]
    if small:
        shapes = [shape | change for shape, change in zip(shapes, SMALL, strict=True)]
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        transformer = ZImageTransformer2DModel(**shapes[0])
        text_encoder = Qwen3Model(Qwen3Config(**shapes[1]))
        vae = AutoencoderKL(**shapes[2])
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if parameter.dim() > 1 or name.endswith("bias"):
                parameter.normal_(0, 0.02)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "zbot/models/tiny/tokenizer", local_files_only=True)
    # The tiny model's template cuts long prompts; the real one adds these words.
    tokenizer.chat_template = "user\n{{ messages[0]['content'] }}\nassistant\n"
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.to(device).eval(),
        text_encoder=text_encoder.to(device).eval(),
        tokenizer=tokenizer,
        transformer=transformer.to(device).eval(),
    )


def random_lora(transformer: Any, *, rank: int) -> dict[str, torch.Tensor]:
    """Return a LoRA of every layer of the transformer's main blocks, in the names of ai-toolkit."""
    state: dict[str, torch.Tensor] = {}
    rng = torch.Generator().manual_seed(1)
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith("layers.") and "adaLN" not in name:
            for part, shape in (
                ("A", (rank, module.in_features)),
                ("B", (module.out_features, rank)),
            ):
                state[f"diffusion_model.{name}.lora_{part}.weight"] = (
                    torch.randn(shape, generator=rng) * 0.02
                ).bfloat16()
    return state
