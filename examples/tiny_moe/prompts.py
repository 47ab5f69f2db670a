"""Cut the demo's prompts out of held-out text and write them to `prompts.json`."""

import json
from pathlib import Path
from typing import Annotated, Any

import corpus
import numpy as np
import typer

HERE = Path(__file__).parent
# From a single byte to a long prompt, so that a batch of them is as uneven as real requests are.
LENGTHS = (1, 2, 5, 9, 17, 24, 40, 64, 96, 128, 160, 200)


def cut(data: np.ndarray, kind: str) -> list[dict[str, Any]]:
    """One prompt per length, from starts of lines spread evenly over `data`."""
    # Not at empty or indented lines: a short prompt would be nothing but blanks.
    line_starts = np.flatnonzero((data[:-1] == ord("\n")) & (data[1:] > ord(" "))) + 1
    picked = line_starts[(np.linspace(0.03, 0.97, len(LENGTHS)) * len(line_starts)).astype(int)]
    return [prompt(data[s : s + length], kind) for s, length in zip(picked, LENGTHS, strict=True)]


def prompt(ids: np.ndarray, kind: str) -> dict[str, Any]:
    """`ids` for the model, `text` for people: the same bytes, one character each."""
    return {"kind": kind, "text": ids.tobytes().decode("latin-1"), "ids": ids.tolist()}


def main(
    text: Annotated[Path, typer.Option(help="The file of prose (tinyshakespeare.txt).")] = corpus.DEFAULT_TEXT,
    out: Annotated[Path, typer.Option(help="The file to write.")] = HERE / "prompts.json",
) -> None:
    """Write one prompt per line, prose and code in turn."""
    texts = corpus.load_or_exit(text)
    pairs = zip(*(cut(texts[kind].heldout, kind) for kind in corpus.KINDS), strict=True)
    lines = [json.dumps(one) for pair in pairs for one in pair]
    out.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{len(lines)} prompts of {min(LENGTHS)} to {max(LENGTHS)} bytes -> {out}")


if __name__ == "__main__":
    typer.run(main)
