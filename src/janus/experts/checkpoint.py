"""Read what one role needs from a local Hugging Face folder: safetensors only, nothing else loaded or executed.

Names on disk differ from those of the modules in memory; transformers' own conversion tables tell which tensors make
up which parameter, so every family it can load is read here without a line of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from janus.errors import JanusError
from janus.experts.folder import check_folder
from janus.experts.layout import Weights
from janus.experts.seam import MoEBlock, find_blocks
from janus.experts.storage import SCALE
from janus.experts.stored_scales import check_joined
from janus.experts.tensors import ALL, TensorFiles

Read = Callable[[str, slice], torch.Tensor]  # name on disk, rows -> tensor


class Checkpoint:
    """A model folder, checked on opening: its skeleton on the meta device, and weights by name on demand.

    Args:
        folder: holds ``config.json`` and ``model.safetensors`` (or shards with their index).
        dtype: of the weights in memory; default the one the config names, else float32. Weights stored in FP8 with a scale
            per 128 x 128 block are dequantized to it, or handed out as they are by `stored_expert`.

    Raises:
        JanusError: ``checkpoint.folder`` (no such folder), ``checkpoint.config``, ``checkpoint.quantized`` (in another
            way), ``checkpoint.pickle`` (weights only as pickles), ``checkpoint.missing`` (a file or tensor that should
            be there), ``checkpoint.corrupt``.

    Example:
        >>> from pathlib import Path
        >>> try:
        ...     Checkpoint(Path("no/such/folder"))
        ... except JanusError as error:
        ...     error.code
        'checkpoint.folder'
    """

    def __init__(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        self.folder = Path(folder)
        check_folder(self.folder)
        self._files = TensorFiles(self.folder)
        self._joined = set[str]()  # parameters whose blocks were seen to survive the joining of their tensors
        self.config = _read_config(self.folder)
        self.dtype = dtype or _config_dtype(self.config)
        self.skeleton = self._build_skeleton()
        self._known: dict[str, torch.Tensor] = self.skeleton.state_dict()  # on the meta device: names, shapes, dtypes
        self.blocks = find_blocks(self.skeleton)
        self._sources, self._converters = self._map_names()

    def close(self) -> None:
        """Unmap the files."""
        self._files.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def expert(self, block: MoEBlock, e: int) -> Weights:
        """Weights of one expert, without the expert dimension; reads that expert's bytes only."""
        self._check_expert(block, e)
        names = [name for name, _ in block.experts.named_parameters()]
        return {name: self._expert_part(block, name, e, self._files.read).to(self.dtype) for name in names}

    def stored_expert(self, block: MoEBlock, e: int, *, scales: bool = True) -> Weights:
        """As `expert`, in the dtype of the files; what is stored as it is used is a view of the mapped file.

        Args:
            block: of `blocks`.
            e: logical expert.
            scales: give weights in FP8 as bytes and scales, bit for bit: scales are float32, named as the matrix with
                ``_scale`` behind it. Else they come dequantized, in float32.

        Raises:
            JanusError: ``checkpoint.quantized`` if joining stored matrices (gate and up) tears their blocks apart.
        """
        self._check_expert(block, e)
        weights, is_transposed = dict[str, torch.Tensor](), getattr(block.experts, "is_transposed", False)
        for name, _ in block.experts.named_parameters():
            target = _target(block, name)
            keys = [key for part in self._sources.get(target, {}).values() for key in part]
            if not scales or not keys or not all(key in self._files.scale_of for key in keys):
                weights[name] = self._expert_part(block, name, e, self._files.read)
                continue
            factors, stored = (self._part(target, e, read)[0] for read in (self._files.scales, self._files.stored))
            factors = factors.mT if is_transposed else factors
            if target not in self._joined:
                check_joined(target, stored, factors, self._part(target, e, self._files.read)[0], is_transposed)
                self._joined.add(target)
            weights |= {name: stored, name + SCALE: factors}
        return weights

    def _check_expert(self, block: MoEBlock, e: int) -> None:
        if not 0 <= e < block.num_experts:
            raise JanusError(
                "checkpoint.missing", f"{self.folder}: {block.name} has experts 0..{block.num_experts - 1}, none is {e}"
            )

    def check_expert(self, block: MoEBlock, e: int) -> None:
        """Refuse what `stored_expert` could not give, by the headers alone; and weights that are no floats.

        Raises:
            JanusError: ``checkpoint.missing``, ``checkpoint.corrupt``, ``checkpoint.dtype``.
        """
        self._check_expert(block, e)
        for name, _ in block.experts.named_parameters():
            self._expert_part(block, name, e, self._files.described)

    def _expert_part(self, block: MoEBlock, name: str, e: int, read: Read) -> torch.Tensor:
        target, shape = _target(block, name), block.experts.get_parameter(name).shape
        return self._fitting(target, self._part(target, e, read), (1, *shape[1:]))[0]

    def _part(self, target: str, e: int, read: Read) -> torch.Tensor:
        """[1, ..]: what one expert has of a parameter, made of what `read` gives."""
        return self._tensor(target, lambda keys, many: _one_expert(keys, many, e, read))

    def router(self, block: MoEBlock) -> nn.Module:
        """The block's router with its weights, on the CPU."""
        attr = block.need_router().attr
        module = block.block.get_submodule(attr)
        stored = module.state_dict()
        for name, _ in module.named_buffers():
            if name not in stored:
                raise JanusError(
                    "model.router", f"{block.name}.{attr} keeps {name!r} outside the checkpoint; use gate='attention'"
                )
        module = module.to_empty(device="cpu")
        names = {name: f"{block.name}.{attr}.{name}" for name in stored}
        module.load_state_dict(
            {name: self.tensor(full).to(self._dtype_of(full)) for name, full in names.items()}, assign=True
        )
        return module.eval().requires_grad_(False)

    def tensor(self, target: str) -> torch.Tensor:
        """A whole parameter or buffer by its name in memory."""
        made = self._tensor(target, lambda keys, _: [self._files.read(k) for k in keys])
        return self._fitting(target, made, tuple(self._known[target].shape))

    @contextmanager
    def without_experts(self) -> Iterator[None]:
        """While inside, models of this family are built with empty experts: nothing is allocated or read for them."""
        with ExitStack() as undo:
            for cls in {type(block.experts) for block in self.blocks}:
                undo.enter_context(_no_parameters(cls))
            yield

    def load_attention_side(self, **kwargs: Any) -> nn.Module:
        """The model with every weight but those of the routed experts, dequantized where they are stored in FP8.

        Raises:
            JanusError: ``checkpoint.missing`` if another weight is not in the files.
        """
        cls, options = type(self.skeleton), {"dtype": self.dtype, "output_loading_info": True} | kwargs
        with self.without_experts(), _quiet_transformers():
            if self._files.scale_of:  # by itself transformers would keep it in FP8 on a GPU, and want accelerate
                model, info = cls.from_pretrained(None, config=self.config, state_dict=self._other_weights(), **options)
                model.generation_config = _generation_config(self.folder) or model.generation_config
            else:
                options |= {"local_files_only": True, "use_safetensors": True}
                model, info = cls.from_pretrained(self.folder, **options)
        missing = sorted(info["missing_keys"])
        if missing or info["mismatched_keys"]:
            raise JanusError(
                "checkpoint.missing",
                f"{self.folder} lacks or mis-shapes {[*missing, *info['mismatched_keys']][:5]} of the model",
            )
        return model.eval()

    def check_experts(self) -> None:
        """Refuse a folder in which a tensor of some expert is missing, before any is read."""
        for block in self.blocks:
            self.check_block(block)

    def check_block(self, block: MoEBlock) -> None:
        """Refuse a folder in which a tensor of some expert of this block is missing."""
        for name, _ in block.experts.named_parameters():
            target = _target(block, name)
            for pattern, keys in self._sources.get(target, {"": []}).items():
                for key in keys:
                    self._files.check_scaled(key)
                if len(keys) == 1 and not pattern:  # all experts in one tensor: slices of it would not show the rest
                    self._check_shape(target, self._files.shape(keys[0]), tuple(self._known[target].shape))
                if len(keys) != 1 and not _numbered(keys, block.num_experts):
                    raise JanusError(
                        "checkpoint.missing",
                        f"{self.folder}: {target} is made of one tensor per expert, numbered 0..{block.num_experts - 1}; "
                        f"found {len(keys)}" + (f", {keys[0]} ... {keys[-1]}" if keys else ""),
                    )

    def _build_skeleton(self) -> Any:
        from transformers import AutoModelForCausalLM

        with torch.device("meta"), _quiet_transformers():
            try:
                return AutoModelForCausalLM.from_config(self.config, dtype=self.dtype)
            except (ValueError, KeyError, TypeError) as error:
                raise JanusError(
                    "checkpoint.config", f"{self.folder / 'config.json'}: no causal model: {error}"
                ) from error

    def _map_names(self) -> tuple[dict[str, dict[str, list[str]]], dict[str, Any]]:
        """Parameter name in memory -> {pattern of its converter or "": names on disk in natural order}."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

        mapping = get_model_conversion_mapping(self.skeleton)
        renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
        converters = [m for m in mapping if isinstance(m, WeightConverter)]
        known, prefix = self._known, self.skeleton.base_model_prefix
        sources: dict[str, dict[str, list[str]]] = {}
        for key in sorted(self._files.names, key=dot_natural_key):
            target, pattern = rename_source_key(key, renamings, converters, prefix, known)
            if target not in known and key in known:
                target, pattern = key, None
            sources.setdefault(target, {}).setdefault(pattern or "", []).append(key)
        return sources, {pattern: c for c in converters for pattern in c.source_patterns}

    def _tensor(self, target: str, read: Callable[[list[str], bool], list[torch.Tensor]]) -> torch.Tensor:
        if target not in self._sources:
            raise JanusError(
                "checkpoint.missing", f"{self.folder} has no tensor for {target}; is the checkpoint complete?"
            )
        patterns = self._sources[target]
        if set(patterns) == {""}:
            return read(patterns[""], False)[0]
        converter = self._converters[next(iter(patterns))]
        converter = converter.copy(
            list(converter._original_source_patterns),
            list(converter._original_target_patterns),
            operations=[_Stack(op) if type(op).__name__ == "MergeModulelist" else op for op in converter.operations],
        )
        merges = any(isinstance(op, _Stack) for op in converter.operations)
        for pattern, keys in patterns.items():
            for key, tensor in zip(keys, read(keys, merges), strict=False):
                converter.add_tensor(target, key, pattern, tensor)
        try:
            value = converter.convert(target, model=self.skeleton, config=self.skeleton.config)[target]
        except (RuntimeError, ValueError, LookupError) as error:
            raise JanusError(
                "checkpoint.corrupt",
                f"{self.folder}: {target} cannot be made of {[k[0] for k in patterns.values()]}: {error}",
            ) from error
        return value[0] if isinstance(value, list) else value

    def _fitting(self, target: str, made: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        self._check_shape(target, tuple(made.shape), shape)
        return made

    def _check_shape(self, target: str, seen: tuple[int, ...], shape: tuple[int, ...]) -> None:
        if seen != shape:
            raise JanusError(
                "checkpoint.corrupt",
                f"{self.folder}: {target} must have the shape {shape} by config.json, the file gives {seen}",
            )

    def _other_weights(self) -> dict[str, torch.Tensor]:
        """Every tensor of the model that is no part of an expert, by its name on disk."""
        experts = tuple(f"{block.name}.{block.experts_attr}." for block in self.blocks)
        return {
            key: self._files.read(key).to(self._dtype_of(target))
            for target, patterns in self._sources.items()
            if target in self._known and not target.startswith(experts)
            for keys in patterns.values()
            for key in keys
        }

    def _dtype_of(self, target: str) -> torch.dtype:
        # transformers keeps some parameters in float32 whatever the model's dtype (a router's weight or correction
        # bias): by patterns over full names that depend on the dtype, or because the module declares it.
        from transformers.core_model_loading import build_glob_alternation

        plan = self.skeleton._get_dtype_plan(self.dtype)
        pattern, names, _ = build_glob_alternation(list(plan))
        found = pattern.search(target) if plan else None
        return plan[names[found.lastgroup]] if found else self._known[target].dtype


def _target(block: MoEBlock, name: str) -> str:
    return f"{block.name}.{block.experts_attr}.{name}"


def _one_expert(keys: list[str], one_tensor_each: bool, e: int, read: Read) -> list[torch.Tensor]:
    if not one_tensor_each:
        return [read(keys[0], slice(e, e + 1))]
    if e >= len(keys):
        raise JanusError("checkpoint.missing", f"there are {len(keys)} tensors like {keys[0]}, none for expert {e}")
    return [read(keys[e], ALL)]


class _Stack:
    """transformers' MergeModulelist, without its copy where there is but one tensor to stack."""

    def __init__(self, merge: Any) -> None:
        self.merge, self.supports_many_to_many = merge, merge.supports_many_to_many

    def convert(self, input_dict: dict[str, list[torch.Tensor]], *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        one = {pattern: t[0].unsqueeze(self.merge.dim) if len(t) == 1 else t for pattern, t in input_dict.items()}
        return self.merge.convert(one, *args, **kwargs)


def _numbered(keys: list[str], count: int) -> bool:
    """Whether one of the numbers in the names runs from 0 to count - 1."""
    numbers = zip(*(re.findall(r"\d+", key) for key in keys), strict=False)
    return any([int(n) for n in column] == list(range(count)) for column in numbers)


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise JanusError("checkpoint.config", f"{folder / 'config.json'}: {error}") from error
    for part in (config, config.get_text_config()):  # weights leave here dequantized
        part.__dict__.pop("quantization_config", None)
    return config


def _generation_config(folder: Path) -> Any:
    from transformers import GenerationConfig

    there = (folder / "generation_config.json").is_file()
    return GenerationConfig.from_pretrained(folder, local_files_only=True) if there else None


def _config_dtype(config: Any) -> torch.dtype:
    dtype = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


@contextmanager
def _no_parameters(cls: type[nn.Module]) -> Iterator[None]:
    """Patch `cls` so that its instances register no parameters; forward is never called before it is replaced."""
    original = cls.__init__

    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        with torch.device("meta"):
            original(self, *args, **kwargs)
        self._parameters.clear()
        self._is_hf_initialized = True  # pyright: ignore[reportArgumentType]  # keeps transformers from initialising it

    cls.__init__ = init
    try:
        yield
    finally:
        cls.__init__ = original


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the bar and the report of unread expert tensors; both would be repeated on every rank."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
