"""What `janus run` reads before anything is started: the model's folder and the prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from janus.errors import JanusError

Prompts = list[str] | list[list[int]]

EXAMPLE = "write e.g. [[84, 111], [72, 105]]"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def gather_prompts(file: Path | None, texts: Sequence[str], model: Path, config: dict[str, Any]) -> Prompts:
    """The prompts of ``--prompts FILE`` or of ``--prompt TEXT``, checked against the model's folder.

    Args:
        file: JSON list of token-id lists, or of strings.
        texts: prompts given on the command line.
        model: folder; strings need a tokenizer in it.
        config: its config.json; token ids must lie below its vocab_size.

    Raises:
        JanusError: ``run.prompts``, ``run.tokenizer``.
    """
    if (file is None) == (not texts):
        got = "both" if texts else "neither"
        raise JanusError("run.prompts", f"give either --prompts FILE or --prompt TEXT, got {got}")
    prompts = list(texts) if file is None else _read(file)
    if all(isinstance(prompt, str) for prompt in prompts):
        _check_texts(prompts, model)
    elif all(isinstance(prompt, list) for prompt in prompts):
        vocab = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
        _check_ids(prompts, vocab)
    else:
        raise JanusError("run.prompts", f"{file} must hold token-id lists alone or strings alone, it mixes them")
    return prompts


def check_lengths(prompts: Prompts, max_new_tokens: int, config: dict[str, Any]) -> None:
    """Refuse token ids that leave no room for the new tokens; texts are counted by the ranks, which have a tokenizer.

    Raises:
        JanusError: ``generate.length``, as `DisaggregatedRunner.generate` would, before any process is started.
    """
    text = config.get("text_config", {})
    positions = config.get("max_position_embeddings") or text.get("max_position_embeddings")
    for number, ids in enumerate(prompts):
        if positions and not isinstance(ids, str) and len(ids) + max_new_tokens > positions:
            rule = f"with {max_new_tokens} new ones more than the model's {positions} positions"
            remedy = "shorten it or lower --max-new-tokens"
            raise JanusError("generate.length", f"prompt {number} has {len(ids)} tokens, {rule}; {remedy}")


def encode(prompts: Prompts, tokenizer: Any) -> list[list[int]]:
    """Token ids of each prompt; lists of ids pass through.

    Raises:
        JanusError: ``run.prompts`` for a text that has no tokens.
    """
    ids = [tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt for prompt in prompts]
    for number, row in enumerate(ids):
        if not row:
            raise JanusError("run.prompts", f"prompt {number} {prompts[number]!r} has no tokens; give a longer text")
    return ids


def _read(file: Path) -> list[Any]:
    if not file.is_file():  # every rank reads it again, which a pipe does not allow
        raise JanusError("run.prompts", f"--prompts must name a regular file, {str(file)!r} is none")
    try:
        prompts = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise JanusError("run.prompts", f"cannot read {file} as JSON: {error}; {EXAMPLE}") from error
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, (list, str)) for p in prompts):
        rule = "must hold a non-empty JSON list of token-id lists or of strings"
        raise JanusError("run.prompts", f"{file} {rule}, got {_short(prompts)}; {EXAMPLE}")
    return prompts


def _check_texts(prompts: list[Any], model: Path) -> None:
    if "" in prompts:
        raise JanusError("run.prompts", f"prompt {prompts.index('')} is empty; give at least one character")
    if not any((model / name).is_file() for name in TOKENIZER_FILES):
        raise JanusError(
            "run.tokenizer",
            f"prompts as text need a tokenizer, {str(model)!r} has none of {', '.join(TOKENIZER_FILES)}; "
            "give token ids with --prompts",
        )


def _check_ids(prompts: list[Any], vocab: int | None) -> None:
    limit = "" if vocab is None else f" below the model's {vocab}"
    for number, ids in enumerate(prompts):
        if not ids:
            raise JanusError("run.prompts", f"prompt {number} is empty; give at least one token id")
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or token < 0 or (vocab and token >= vocab):
                rule = f"token ids must be integers >= 0{limit}"
                raise JanusError("run.prompts", f"{rule}; prompt {number} holds {_short(token)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
