"""What a model folder must hold before anything in it is opened; needs the standard library alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from janus.errors import JanusError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
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
    # Experts are read tensor by tensor, without the scales beside them: cast alone they would be silently wrong.
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    found = next((part["quantization_config"] for part in parts if part.get("quantization_config")), None)
    if found:
        method = found.get("quant_method") if isinstance(found, dict) else found
        raise JanusError(
            "checkpoint.quantized",
            f"{folder} holds quantized weights (quant_method {method!r}), which this version does not read; convert it to "
            "float32, bfloat16 or float16 and save it again",
        )


def _refuse_weights(folder: Path) -> None:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise JanusError(
            "checkpoint.pickle",
            f"{folder} holds weights only as pickles ({', '.join(pickles[:3])}), which can run code when loaded; convert "
            "them with save_pretrained, which writes safetensors",
        )
    raise JanusError("checkpoint.missing", f"{folder} holds neither {SINGLE} nor {INDEX}")
