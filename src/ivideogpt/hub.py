"""Load and save models: native layout, official layout, shipped models, Hub ids. Works on configurations and tensors.

Native layout: one folder with `config.json` (format, version, and the configuration of each part) and one
safetensors file a part, `tokenizer.safetensors` and `transformer.safetensors`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ivideogpt import official
from ivideogpt.config import DataFacts, SamplingConfig, TokenizerConfig, TransformerConfig
from ivideogpt.errors import CheckpointError, ConfigError, OutputError, unknown_name
from ivideogpt.files import folder_written_atomically, look_at, require_free_output, write_text_atomically
from ivideogpt.published import Told, known_of
from ivideogpt.weights import Weights, plain_names, unshared

FORMAT, VERSION = "ivideogpt", 1
RUN_MODEL = "model"
"""The folder in a training run that holds its model."""
CONFIG_FILE, TOKENIZER_FILE, TRANSFORMER_FILE = "config.json", "tokenizer.safetensors", "transformer.safetensors"

Layout = Literal["native", "official"]

_PARTS = {CONFIG_FILE, TOKENIZER_FILE, TRANSFORMER_FILE, "tokenizer", "transformer"}


@dataclass(frozen=True)
class Checkpoint:
    """What a model folder holds: each part's configuration and tensors, where it has that part."""

    tokenizer: tuple[TokenizerConfig, Weights] | None = None
    transformer: tuple[TransformerConfig, Weights] | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def shipped_models() -> list[str]:
    """Names of the models inside the package."""
    folder = Path(str(package_files("ivideogpt"))) / "models"
    return sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))


def resolve(name: str | Path) -> Path:
    """Folder of a model: a local folder, or the `model/` in that of a training run; else a shipped model; else a Hub id
    (`owner/name`), which is downloaded.

    Raises:
        CheckpointError: no such model, or the Hub cannot be reached.
    """
    path = look_at(name, CheckpointError)
    if path.is_dir():
        run = not _is_model(path) and _is_model(path / RUN_MODEL)
        return path / RUN_MODEL if run else path
    if path.is_file():
        raise CheckpointError(f"model {str(name)!r} is a file. Give the folder that holds {CONFIG_FILE}.")
    shipped = shipped_models()
    if str(name) in shipped:
        return Path(str(package_files("ivideogpt"))) / "models" / str(name)
    parts = str(name).split("/")
    if len(parts) == 2 and all(parts) and parts[0] not in (".", "..", "~"):
        return _download(str(name))
    hint = unknown_name("model", str(name), shipped)
    raise CheckpointError(f"{hint} Or give a folder (none at {path.absolute()}) or a Hub id 'owner/name'.")


def _is_model(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() or (folder / official.TOKENIZER_CONFIG).is_file()


def load(name: str | Path, *, goal: bool | None = None, trained_frames: int | None = None) -> Checkpoint:
    """Read a model folder of either layout, a shipped model or a Hub id.

    Args:
        name: of the model.
        goal: whether its first context frame is a goal. The official layout does not say it; it is known of the
            published ids (`published.PUBLISHED`). Left out where it is not known: no goal, with a warning.
        trained_frames: frames T of the sequences it was trained on, context and goal included; known as `goal` is.
            Left out where it is not known: 16, or 17 with a goal, with a warning.

    Raises:
        CheckpointError: nothing there, another format or version, not safetensors, truncated.
        ConfigError: `goal` or `trained_frames` contradict what is known of the model.
    """
    folder, parts = _read_folder(name)
    if parts.transformer is None:
        return parts
    config, weights = parts.transformer
    given = Told(goal, trained_frames)
    if (folder / CONFIG_FILE).is_file() or "goal" in _read_json(folder / official.TRANSFORMER_CONFIG):
        told = Told(config.layout.goal, config.trained_frames).settled(given, name)  # this library wrote it
    else:
        assert parts.tokenizer is not None, "the official layout begins with a tokenizer"
        told = known_of(name, config, parts.tokenizer[0].resolution).settled(given, name).completed(name, config)
    return dataclasses.replace(parts, transformer=(told.applied(config), weights))


def load_tokenizer(name: str | Path) -> tuple[TokenizerConfig, Weights]:
    """The tokenizer of a model folder; errors as `load`."""
    part = _read_folder(name)[1].tokenizer
    if part is None:
        raise CheckpointError(f"{name} holds no tokenizer. Give a folder with {TOKENIZER_FILE}.")
    return part


def load_transformer(
    name: str | Path, *, goal: bool | None = None, trained_frames: int | None = None
) -> tuple[TransformerConfig, Weights]:
    """The transformer of a model folder; arguments and errors as `load`."""
    part = load(name, goal=goal, trained_frames=trained_frames).transformer
    if part is None:
        raise CheckpointError(f"{name} holds no transformer. Train one, or give a folder with {TRANSFORMER_FILE}.")
    return part


def write_facts(folder: str | Path, facts: DataFacts) -> None:
    """Write facts on the data into the configuration of a saved model, of either layout; its weights stay as they are.

    Raises:
        CheckpointError: the folder holds no transformer.
        ConfigError: the facts do not fit the model.
        OutputError: the configuration cannot be written.
    """
    folder = Path(folder).expanduser()
    native = (folder / CONFIG_FILE).is_file()
    path = folder / (CONFIG_FILE if native else official.TRANSFORMER_CONFIG)
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no transformer whose data could have facts. Give a model folder.")
    content = _read_json(path)
    if native and "transformer" not in content:
        raise CheckpointError(f"{folder} holds no transformer whose data could have facts. Give a model folder.")
    part = content["transformer"] if native else content
    action_dim = load_transformer(folder)[0].action_dim
    TransformerConfig.checked(action_dim=action_dim, data=facts)
    part["data"] = facts.model_dump(mode="json") if native else facts.model_dump(mode="json", exclude_defaults=True)
    write_text_atomically(path, json.dumps(content, indent=2) + "\n")


def save(folder: str | Path, checkpoint: Checkpoint, *, layout: Layout = "native", overwrite: bool = False) -> Path:
    """Write a model folder; it appears whole or not at all.

    Raises:
        OutputError: the folder is not empty and `overwrite` is not set, or holds more than a model; or a full disk.
        CheckpointError: the layout cannot express this model.
    """
    if layout not in ("native", "official"):
        raise ConfigError(unknown_name("checkpoint layout", layout, ["native", "official"]))
    folder = Path(folder).absolute()  # the folder has a name then, "." too
    require_free_output(folder, overwrite=overwrite, cure="overwrite=True")
    _require_only_a_model(folder)
    with folder_written_atomically(folder) as temporary:
        for note in _notes(folder):
            _bring_along(note, temporary / note.name)
        (_write_native if layout == "native" else _write_official)(temporary, checkpoint)
    return folder


def _notes(folder: Path) -> list[Path]:
    """What somebody keeps beside a model: its card, notes, what notebooks and file browsers leave."""
    return [path for path in folder.iterdir() if path.name not in _PARTS] if _is_model(folder) else []


def _bring_along(note: Path, copy: Path) -> None:
    """The same file or folder under another name, without copying what is in it where the file system can do that."""
    if note.is_dir() and not note.is_symlink():
        shutil.copytree(note, copy, symlinks=True, copy_function=_link_or_copy)
    else:
        _link_or_copy(str(note), str(copy))


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _require_only_a_model(folder: Path) -> None:
    """The whole folder is about to be replaced, so it may hold nothing but a model and notes on it."""
    kept = {*_PARTS, *(path.name for path in _notes(folder))}
    strange = sorted(path.name for path in folder.iterdir() if path.name not in kept) if folder.is_dir() else []
    if strange:
        raise OutputError(
            f"output folder {folder} holds more than a model ({_first_few(strange)}), which would be lost. "
            "Choose another folder, or move those away."
        )


def write_tensors(path: Path, weights: Weights) -> None:
    """Write a safetensors file.

    Raises:
        OSError: a full disk and the like, as from any other file; safetensors itself raises a type of its own.
    """
    try:
        save_file(unshared(plain_names(weights)), path, {"format": "pt"})
        os.chmod(path, 0o644)  # safetensors leaves it readable to the owner alone
    except SafetensorError as error:
        number = re.search(r"(?:os error|code:) (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _read_folder(name: str | Path) -> tuple[Path, Checkpoint]:
    """The folder that a name means, and what its files say."""
    folder = resolve(name)
    if (folder / CONFIG_FILE).is_file():
        return folder, _load_native(folder)
    if (folder / official.TOKENIZER_CONFIG).is_file():
        return folder, _load_official(folder)
    found = sorted(p.name for p in folder.iterdir())[:10]
    raise CheckpointError(
        f"{folder} holds no model: neither {CONFIG_FILE} (native layout) nor {official.TOKENIZER_CONFIG} "
        f"(official layout). It holds: {', '.join(found) or 'nothing'}."
    )


def _load_native(folder: Path) -> Checkpoint:
    path = folder / CONFIG_FILE
    config = _read_json(path)
    if config.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format is {config.get('format')!r}; this library reads {FORMAT!r}.")
    if config.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: version is {config.get('version')!r}; this library reads version {VERSION}. "
            "Install the library version that wrote it, or save the model again."
        )
    with _readable_configuration(path):
        tokenizer = TokenizerConfig.checked(**config["tokenizer"]) if "tokenizer" in config else None
        transformer = TransformerConfig.checked(**config["transformer"]) if "transformer" in config else None
        sampling = SamplingConfig.checked(**config.get("sampling", {}))
    return Checkpoint(
        tokenizer=None if tokenizer is None else (tokenizer, _read_tensors(folder / TOKENIZER_FILE)),
        transformer=None if transformer is None else (transformer, _read_tensors(folder / TRANSFORMER_FILE)),
        sampling=sampling,
    )


def _load_official(folder: Path) -> Checkpoint:
    path = folder / official.TOKENIZER_CONFIG
    config, weights = _read_json(path), _read_tensors(folder / official.TOKENIZER_FILE)
    with _readable_configuration(path):
        tokenizer = official.tokenizer_from_official(config, weights)
    path = folder / official.TRANSFORMER_CONFIG
    if not path.is_file():
        return Checkpoint(tokenizer=tokenizer)
    config, weights = _read_json(path), _read_tensors(folder / official.TRANSFORMER_FILE)
    with _readable_configuration(path):
        transformer = official.transformer_from_official(config, weights, tokenizer[0].layout)
        sampling = SamplingConfig.checked(**config.get("sampling", {}))
    return Checkpoint(tokenizer=tokenizer, transformer=transformer, sampling=sampling)


def _write_native(folder: Path, checkpoint: Checkpoint) -> None:
    config: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    parts = [
        ("tokenizer", checkpoint.tokenizer, TOKENIZER_FILE),
        ("transformer", checkpoint.transformer, TRANSFORMER_FILE),
    ]
    for name, part, file in parts:
        if part is not None:
            config[name] = _as_json(part[0])
            write_tensors(folder / file, part[1])
    if checkpoint.transformer is not None:
        config["sampling"] = _as_json(checkpoint.sampling)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def _write_official(folder: Path, checkpoint: Checkpoint) -> None:
    if checkpoint.tokenizer is None:
        raise CheckpointError("the official layout keeps a transformer beside its tokenizer. Save a whole WorldModel.")
    parts = [
        (official.tokenizer_to_official(*checkpoint.tokenizer), official.TOKENIZER_CONFIG, official.TOKENIZER_FILE)
    ]
    if checkpoint.transformer is not None:
        converted = official.transformer_to_official(*checkpoint.transformer)
        if checkpoint.sampling != SamplingConfig():
            converted[0]["sampling"] = _as_json(checkpoint.sampling)  # a field that the official code does not read
        parts.append((converted, official.TRANSFORMER_CONFIG, official.TRANSFORMER_FILE))
    for (config, weights), config_file, weights_file in parts:
        (folder / config_file).parent.mkdir(exist_ok=True)
        (folder / config_file).write_text(json.dumps(config, indent=2) + "\n")
        write_tensors(folder / weights_file, weights)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}; a configuration is a JSON object.")
    return content


def _read_tensors(path: Path) -> Weights:
    if not path.is_file():
        others = sorted(p.name for p in path.parent.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        cure = f" Found {', '.join(others)}: only safetensors files are read; convert it first." if others else ""
        raise CheckpointError(f"missing weight file {path}.{cure}")
    try:
        return plain_names(load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}). Download or save it again; "
            "pickled weights are never read."
        ) from error


def _as_json(config: BaseModel) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _first_few(names: list[str]) -> str:
    return f"{'; '.join(names[:3])}{' ...' if len(names) > 3 else ''}"


@contextmanager
def _readable_configuration(path: Path) -> Iterator[None]:
    try:
        yield
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path} is not a legal configuration: {error}") from error


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.md"]))
    except Exception as error:  # the Hub client raises many unrelated types when it is offline or the id is unknown
        raise CheckpointError(
            f"model {name!r} is neither a local folder nor shipped ({', '.join(shipped_models()) or 'none shipped'}), "
            f"and could not be had from the Hugging Face Hub ({type(error).__name__}). Check the id and the network, "
            "or download the folder elsewhere and pass its path."
        ) from error


def as_dtype(weights: Weights, dtype: torch.dtype) -> Weights:
    """Floating-point tensors in another precision; the rest unchanged."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
