"""A model folder's weights, on the device and in the numbers asked for."""

from __future__ import annotations

import torch
import transformers

from stella_ray.encode import attention
from stella_ray.encode.models import EncoderSpec
from stella_ray.encode.quantised import check_int8
from stella_ray.errors import ModelError, SettingsError


def find_device(name: str) -> torch.device:
    """The device of this name; auto takes cuda where there is one.

    Raises:
        SettingsError: torch doesn't know it, or there is none here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(
            f"device {name!r} isn't one of torch's; expected auto, cpu or cuda"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"device {name}: no CUDA device here; expected cpu or auto")
    return device


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """The numbers of this name.

    auto is bfloat16 on CUDA, float16 on GPUs before Ampere, whose bfloat16 is emulated, and float32
    elsewhere.

    Raises:
        SettingsError: int8, and the device can't.
    """
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            name = "float16"
    if name == "int8":
        check_int8(device)
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_model(
    spec: EncoderSpec, dtype: torch.dtype, *, packed: bool
) -> transformers.PreTrainedModel:
    """Load an encoder's weights onto the CPU, for inference.

    Args:
        spec: the encoder.
        dtype: of its numbers; float32 for int8, whose products are made of these.
        packed: whether it will meet packed batches alone; else its attention is SDPA.

    Raises:
        ModelError: the weights can't be loaded, or aren't all there.
        SettingsError: int8 for a model of another kind than BERT's.
    """
    if dtype == torch.int8 and spec.model_type not in attention.PACKABLE:
        raise SettingsError(
            f"dtype int8 is for models of type {', '.join(attention.PACKABLE)}; {spec.name} is"
            f" {spec.model_type}: use --encoder.dtype auto"
        )
    attention.register()
    bert = {"add_pooling_layer": False} if spec.model_type in attention.PACKABLE else {}
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # a pooler that isn't loaded is no news
    try:
        model, loaded = transformers.AutoModel.from_pretrained(
            spec.folder,
            dtype=torch.float32 if dtype == torch.int8 else dtype,
            attn_implementation=attention.PACKED if packed else "sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **bert,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{spec.folder}: the weights can't be loaded ({reason})") from None
    except Exception as error:
        # safetensors' own error type derives from Exception alone
        if type(error).__name__ != "SafetensorError":
            raise
        raise ModelError(f"{spec.folder}: damaged safetensors file ({error})") from None
    # transformers fills what isn't in the file with random numbers
    if missing := sorted(name for name in loaded["missing_keys"] if "pooler" not in name):
        raise ModelError(
            f"{spec.folder}: {len(missing)} of the model's weights aren't in its .safetensors files"
            f" ({missing[0]}, …); expected all that config.json describes"
        )
    return model.eval()
