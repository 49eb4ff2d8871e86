"""Published kinds of weights that cannot be used here, by names of their tensors."""

import re

from ..weights.weight_file import WeightFile
from .file_report import NOWHERE, FileReport

_LORA = r".*(lora|\.alpha$|hada_|lokr_)"
_WIDE = "(double_blocks|single_blocks|single_transformer_blocks)"
_BASES = "no motion module fits its model; use one for SD1.5, SD2 or SDXL"
_CLIP = "SD1.5, SD2 and SDXL read CLIP's text encoders"
_NO_MODULE = "no motion module fits it; use a model of SD1.5, SD2 or SDXL"
_FRAMES = "it works on finished images; run it on the clip's frames"
_KINDS = (
    ("TAESD", r"(taesd_)?((en|de)coder\.)?(layers\.)?\d+\.conv\.0\.weight$",
     "it is a small VAE for previews; use a full one with vae"),
    ("ControlNet-LLLite", r"lllite_",
     "it changes attentions of SDXL; use a full ControlNet with controlnets"),
    ("union ControlNet", r"(controlnet\.)?(task_embedding$|control_add_embedding\.)",
     "it reads the type of its input besides images; use a ControlNet for one type"),
    ("BrushNet", r"brushnet_", "use an inpainting mask (start.mask) instead"),
    ("T2I style adapter", r"style_embedding$",
     "it reads CLIP's view of an image; use an IP-Adapter with ip_adapters"),
    ("Flux Redux", r"redux_(up|down)\.", "use an IP-Adapter with ip_adapters"),
    ("hypernetwork", r"\d+\.[01]\.linear\.\d+\.weight$",
     "hypernetworks are not supported; use a LoRA of the style"),
    ("CameraCtrl", r"pose_encoder(_state_dict)?\.|.*\.qkv_merge\.",
     "it reads poses of a camera; use MotionLoRAs of camera moves with camera"),
    ("AnimateLCM-I2V module", r"(module\.)?img_encoder\.",
     "its image encoder is not supported; use AnimateLCM's text-to-video module, and keyframes or "
     "SparseCtrl for images"),
    ("ELLA", r"(module\.)?(connector\.)?time_aware_linear\.|connector\.latents$",
     "it reads a T5 text encoder; leave it out"),
    ("PhotoMaker", r"id_encoder\.", "use a plus-face IP-Adapter with ip_adapters"),
    ("PuLID", r"(module\.)?id_adapter(_attn_layers)?\.|pulid_",
     "use a plus-face IP-Adapter with ip_adapters"),
    ("upscaler", r".*(\bRDB\d\.|\brdb\d\.|residual_group\.blocks)|(params_ema\.)?conv_first\.",
     _FRAMES),
    ("face restorer", r".*stylegan_decoder|ft_layers\.\d", _FRAMES),
    ("T5 text encoder", r"(text_model\.)?encoder\.block\.0\.layer\.0\.SelfAttention", _CLIP),
    ("language model", r"(model\.)?layers\.\d+\.self_attn\.q_proj", _CLIP),
    ("image encoder in OpenCLIP's names", r"visual\.(transformer|conv1|trunk)",
     "use the folder of the same encoder in transformers' form"),
    ("scaled fp8 model", r"(.*\.)?(scaled_fp8|scale_weight|weight_scale|comfy_quant)$",
     "its weights are quantised with scales; use the fp16 or the plain fp8 file"),
    ("quantised model", r".*\.(weight\.(absmax|quant_map|quant_state)|qweight|qzeros)",
     "use the fp16 file of the same model"),
    ("LoRA for Flux or HunyuanVideo", rf".*{_WIDE}[._]\d+{_LORA}", _BASES),
    ("LoRA for SD3", rf".*joint_blocks[._]\d+{_LORA}", _BASES),
    ("LoRA for Wan", rf"(.*\.)?(lora_unet_)?blocks[._]\d+[._](self|cross)_attn{_LORA}", _BASES),
    ("LoRA for a transformer model", rf"(lora_|lycoris_|diffusion_model\.)?transformer[._]{_LORA}|"
     rf"(diffusion_model\.)?transformer_blocks\.\d+\.{_LORA}", _BASES),
    ("Stable Video Diffusion model", r".*\b(time_stack|temporal_transformer_blocks|time_mixer)\.",
     _NO_MODULE),
    ("ModelScope or ZeroScope model", r".*\b(temopral_conv|temp_convs|temp_attentions)\.",
     _NO_MODULE),
    ("transformer model", r"(single_|joint_)?transformer_blocks\.\d+\.", _NO_MODULE),
    ("video VAE", r"((en|de)coder\.)?(downsamples|upsamples|middle)\.\d+\.residual|"
     r"decoder\.(up|down)_blocks\.\d+\.res_blocks|.*\.mix_factor$",
     "use a VAE of SD1.5 or SDXL with vae"),
    ("embedding with output vectors", r"clip_[lg]_out$",
     "they are added after the text encoder; train it without output embeddings"),
)  # fmt: skip
"""(kind, how the name of one of its tensors begins, what to use instead); the first that matches
counts."""


def recognise_published(file: WeightFile) -> FileReport | None:
    """A published kind that cannot be used, with what to use instead."""
    names = "\n".join(file.shapes)
    for kind, pattern, note in _KINDS:
        if re.search(f"^(?:{pattern})", names, re.MULTILINE):
            details = {"note": note}
            return FileReport(
                path=file.path, kind=kind, goes_in=NOWHERE, details=details, file=file
            )
    return None
