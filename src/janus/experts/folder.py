"""What a model folder must hold before anything in it is opened; needs the standard library alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from janus.errors import JanusError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# Of a quantization_config: what is read of quant_method "fp8". The blocks are not optional, the others are seldom named.
FP8_CONFIG = {"weight_block_size": [128, 128], "fmt": "e4m3", "expert_dtype": "fp8"}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_folder(folder: Path) -> dict[str, Any]:
    """Refuse a folder that cannot be a safe checkpoint, without reading a weight.

    Returns:
        The contents of its config.json.

    Raises:
        JanusError: ``checkpoint.folder``, ``checkpoint.config``, ``checkpoint.quantized``, ``checkpoint.pickle``,
            ``checkpoint.missing``.

    Example:
        >>> try:
        ...     check_folder(Path("no/such/folder"))
        ... except JanusError as error:
        ...     error.code
        'checkpoint.folder'
    """
    if not folder.is_dir():
        raise JanusError("checkpoint.folder", f"{folder} is not a folder; give a local Hugging Face model folder")
    config = _config(folder / "config.json")
    _refuse_quantized(folder, config)
    if not (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
        _refuse_weights(folder)
    return config


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise JanusError("checkpoint.config", f"{path} must be a model's config as JSON: {error}") from error
    if not isinstance(config, dict):
        raise JanusError("checkpoint.config", f"{path} must hold a JSON object, got {type(config).__name__}")
    return config


def _refuse_quantized(folder: Path, config: dict[str, Any]) -> None:
    # Cast without their scales, weights would be silently wrong.
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    found = next((part["quantization_config"] for part in parts if part.get("quantization_config")), None)
    if reason := why_unread(found) if found else "":
        raise JanusError("checkpoint.quantized", f"{folder} holds quantized weights: {reason}")


def why_unread(quantization: Any) -> str:
    """Why weights of a ``quantization_config`` are not read; empty for FP8 with a scale per 128 x 128 block.

    Example:
        >>> why_unread({"quant_method": "fp8", "weight_block_size": [128, 128]})
        ''
        >>> why_unread({"quant_method": "fp8", "weight_block_size": None}).partition(",")[2]
        ' 128] alone, this one has None; dequantize it to bfloat16 and save it again'
    """
    config = quantization if isinstance(quantization, dict) else {"quant_method": quantization}
    method, remedy = config.get("quant_method"), "dequantize it to bfloat16 and save it again"
    if method == "mxfp4":
        return (
            "quant_method 'mxfp4' packs two 4-bit weights into a byte, which this version does not read; load it with "
            "transformers and quantization_config=Mxfp4Config(dequantize=True), then give the model itself (it is bfloat16), "
            "or save it with save_pretrained(folder, save_original_format=False)"
        )
    if method != "fp8":
        return f"quant_method {method!r} is not one this version reads; {remedy}"
    for key, wanted in FP8_CONFIG.items():
        value = config.get(key, None if key == "weight_block_size" else wanted)
        if value != wanted:
            return f"quant_method 'fp8' is read with {key} {wanted!r} alone, this one has {value!r}; {remedy}"
    return ""


def _refuse_weights(folder: Path) -> None:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise JanusError(
            "checkpoint.pickle",
            f"{folder} holds weights only as pickles ({', '.join(pickles[:3])}), which can run code when loaded; convert "
            "them with save_pretrained, which writes safetensors",
        )
    raise JanusError("checkpoint.missing", f"{folder} holds neither {SINGLE} nor {INDEX}")
