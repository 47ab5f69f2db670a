"""Bits per byte: of the model over long texts, and of the counting models it has to beat."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

CONTEXT = 512
STRIDE = 256
ROWS = 8


@torch.no_grad()
def model_bits(model: PreTrainedModel, data: np.ndarray) -> np.ndarray:
    """Bits that `model` spends on each byte of `data` after the first: float64 [len(data) - 1].

    Windows of CONTEXT bytes move by STRIDE and score their last STRIDE bytes, so every byte but the first STRIDE is
    predicted from at least STRIDE bytes before it.
    """
    ids = torch.from_numpy(data.astype(np.int64))
    first = _window_bits(model, ids[None, : CONTEXT + 1])[0]
    starts = range(STRIDE, len(ids) - CONTEXT, STRIDE)
    windows = [ids[s : s + CONTEXT + 1] for s in starts]
    chunks = [_window_bits(model, torch.stack(windows[i : i + ROWS])) for i in range(0, len(windows), ROWS)]
    scored = [first, *(chunk[:, -STRIDE:].reshape(-1) for chunk in chunks)]
    done = sum(len(s) for s in scored)
    if done < len(ids) - 1:  # the end that no whole stride covers
        scored.append(_window_bits(model, ids[None, -(CONTEXT + 1) :])[0, done - len(ids) + 1 :])
    return torch.cat(scored).double().numpy()


def _window_bits(model: PreTrainedModel, ids_BT: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
    nats = F.cross_entropy(logits.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none")
    return nats.view(len(ids_BT), -1) / math.log(2)


def unigram_bits(train: list[np.ndarray], data: np.ndarray) -> np.ndarray:
    """Bits per byte after the first under byte frequencies of `train`, add-one smoothed.

    Example: trained on b"aab", byte "a" has probability (2 + 1) / (3 + 256).
    """
    counts = 1 + sum(np.bincount(part, minlength=256) for part in train)
    return -np.log2(counts / counts.sum())[data[1:]]


def bigram_bits(train: list[np.ndarray], data: np.ndarray) -> np.ndarray:
    """Bits per byte after the first under pair frequencies of `train`, add-one smoothed.

    Example: trained on b"aab", "b" after "a" has probability (1 + 1) / (2 + 256).
    """
    counts = np.ones((256, 256))
    for part in train:
        np.add.at(counts, (part[:-1], part[1:]), 1)
    return -np.log2(counts / counts.sum(axis=1, keepdims=True))[data[:-1], data[1:]]
