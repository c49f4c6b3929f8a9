"""What an RLDS data set says of its steps (`features.json`), and the values of one record by it.

A record holds each field of its steps as one flat list; only `features.json` says how it is cut into steps.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ivideogpt.data.episode import JsonValue
from ivideogpt.data.sources.recording import Frame, as_track
from ivideogpt.data.sources.tfrecord import Example, opened
from ivideogpt.errors import EpisodeError

_LARGEST_JSON = 16 << 20  # bytes; known ones have at most some hundred thousand
_MOST_DEFLATED = 1033  # no deflated data become more times as long
_FLOATS = "float16", "float32", "float64", "bfloat16"
_WHOLE = "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"
_TEXTS = "string", "object", "str"
_CURE = "Write the records and features.json with one version of the builder."
_INSTRUCTIONS = "language_instruction", "natural_language_instruction", "instruction"
_FLAGS = "is_last", "is_terminal"
_PLACES = "steps", "steps/observation", "episode_metadata"


@dataclass(frozen=True)
class Feature:
    """One leaf of `features.json`.

    Attributes:
        key: its key in a record, as `steps/observation/image`.
        kind: `image`, `number`, `text`, or another word where it is none of these.
        dtype: of one value, as numpy calls it.
        shape: of one step's value; None for a size that is not declared.
        encoding: `none`, or `bytes` or `zlib` where each step's value is one byte string.
    """

    key: str
    kind: str
    dtype: str = ""
    shape: tuple[int | None, ...] = ()
    encoding: str = "none"

    @property
    def size(self) -> int | None:
        """Numbers a step; None where that is not declared."""
        known = [size for size in self.shape if size is not None]
        return math.prod(known) if len(known) == len(self.shape) else None


@dataclass(frozen=True)
class Layout:
    """Which features make a recording, each in the order of `features.json`, but cameras by name."""

    cameras: tuple[tuple[str, Feature], ...]
    actions: tuple[tuple[str, Feature], ...]
    states: tuple[tuple[str, Feature], ...]
    rewards: Feature | None
    language: tuple[Feature, ...]
    metadata: tuple[tuple[str, Feature], ...]
    flags: tuple[tuple[str, Feature], ...]


def read_json(path: Path) -> Any:
    """The contents of a JSON file.

    Raises:
        EpisodeError: it is missing, too large or not JSON. The message begins with the path.
    """
    with opened(path) as (file, size):
        if size > _LARGEST_JSON:
            raise EpisodeError(f"{path}: {size} bytes; at most {_LARGEST_JSON} are read. Copy or write it again.")
        text = file.read()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EpisodeError(f"{path}: not JSON ({error}). Copy or download it again.") from error


def read_layout(path: Path) -> Layout:
    """What `features.json` says.

    Raises:
        EpisodeError: it is damaged, of a data set without steps or cameras, or its actions cannot be read.
    """
    content = read_json(path)
    try:
        features = {feature.key: feature for feature in _leaves(content, "")}
        return _layout(features)
    except EpisodeError as error:
        raise EpisodeError(f"{path}: {error}") from error
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise EpisodeError(
            f"{path}: not the features of a data set ({type(error).__name__}: {error}). Copy or download it again."
        ) from error


def _leaves(node: dict[str, Any], key: str) -> Iterator[Feature]:
    if "featuresDict" in node:
        for name, child in node["featuresDict"]["features"].items():
            yield from _leaves(child, f"{key}/{name}" if key else name)
    elif "sequence" in node and key == "steps":
        yield from _leaves(node["sequence"]["feature"], key)
    elif "image" in node:
        image = node["image"]
        shape = _shape(image) or (None, None, None)
        yield Feature(key, "image", str(image.get("dtype") or "uint8"), shape)
    elif "tensor" in node:
        tensor = node["tensor"]
        dtype = str(tensor["dtype"])
        kind = "number" if dtype in _FLOATS + _WHOLE else "text" if dtype in _TEXTS else dtype
        yield Feature(key, kind, dtype, _shape(tensor), str(tensor.get("encoding") or "none").lower())
    elif "text" in node:
        yield Feature(key, "text")
    elif "classLabel" in node:
        yield Feature(key, "number", "int64")
    else:
        yield Feature(key, " or ".join(sorted(set(node) - {"pythonClassName", "description"})) or "nothing")


def _shape(node: dict[str, Any]) -> tuple[int | None, ...]:
    sizes = [int(size) for size in node.get("shape", {}).get("dimensions", [])]
    return tuple(size if size >= 0 else None for size in sizes)


def _layout(features: dict[str, Feature]) -> Layout:
    if not any(key.startswith("steps/") for key in features):
        raise EpisodeError(
            f"no 'steps' (features: {', '.join(list(features)[:8]) or 'none'}); an RLDS data set has them. "
            "Give the folder of one."
        )
    observations = _below(features, "steps/observation")
    cameras = sorted((name, feature) for name, feature in observations if _is_camera(feature))
    if not cameras:
        held = ", ".join(f"{name} ({feature.kind} {feature.shape})" for name, feature in observations[:12])
        raise EpisodeError(
            "no camera in steps/observation: no image of 8-bit RGB. There are: "
            f"{held or 'no observations'}. Write one as tfds.features.Image(shape=(H, W, 3))."
        )
    actions = [(name, feature) for name, feature in _below(features, "steps/action") if feature.kind != "text"]
    for name, feature in actions:
        if feature.kind != "number" or feature.size is None:
            raise EpisodeError(
                f"action {name!r} is {feature.kind} {feature.shape}; it must be numbers of a fixed shape. Write it as "
                "tfds.features.Tensor."
            )
    rewards = features.get("steps/reward")
    language = (features.get(f"{place}/{name}") for place in _PLACES for name in _INSTRUCTIONS)
    return Layout(
        cameras=tuple(cameras),
        actions=tuple(actions),
        states=tuple(_states(observations)),
        rewards=rewards if rewards and rewards.kind == "number" and rewards.size == 1 else None,
        language=tuple(feature for feature in language if feature and _is_language(feature)),
        metadata=tuple((name, f) for name, f in _below(features, "episode_metadata") if f.shape == ()),
        flags=tuple((name, features[key]) for name in _FLAGS if (key := f"steps/{name}") in features),
    )


def _below(features: dict[str, Feature], key: str) -> list[tuple[str, Feature]]:
    """The feature at `key` by its last name, or those below it by their names without `key`."""
    if key in features:
        return [(key.rpartition("/")[2], features[key])]
    return [(name.removeprefix(f"{key}/"), feature) for name, feature in features.items() if name.startswith(f"{key}/")]


def _is_camera(feature: Feature) -> bool:
    if feature.dtype != "uint8" or len(feature.shape) != 3:
        return False
    if feature.kind == "image":
        return feature.shape[2] in (3, None)  # one channel is depth or a mask
    return feature.kind == "number" and feature.shape[2] == 3 and bool(feature.size)


def _is_language(feature: Feature) -> bool:
    codes = feature.kind == "number" and feature.dtype in _WHOLE and len(feature.shape) == 1 and bool(feature.size)
    return codes or (feature.kind == "text" and feature.shape == ())


def _states(observations: list[tuple[str, Feature]]) -> Iterator[tuple[str, Feature]]:
    """`state`, else the floats of rank 0 or 1 that are no embeddings."""
    numbers = [(name, feature) for name, feature in observations if feature.kind == "number" and feature.size]
    own = [(name, feature) for name, feature in numbers if name == "state" or name.startswith("state/")]
    for name, feature in own or numbers:
        if own or (feature.dtype in _FLOATS and len(feature.shape) <= 1 and "embedding" not in name):
            yield name, feature


def steps_of(example: Example, layout: Layout) -> int:
    """Steps T of a record: of every camera.

    Raises:
        EpisodeError: none, or another number from camera to camera.
    """
    lengths = {name: _count(example, feature) for name, feature in layout.cameras}
    if len(set(lengths.values())) > 1:
        raise EpisodeError(f"the cameras have {lengths} frames; they must have equally many. {_CURE}")
    length = next(iter(lengths.values()))
    if length == 0:
        raise EpisodeError("no steps; an episode has at least one. Leave it out of the data set.")
    return length


def _count(example: Example, feature: Feature) -> int:
    if feature.kind == "image" or feature.encoding != "none":
        return len(example.texts(feature.key))
    assert feature.size, "chosen as a camera"
    count, rest = divmod(len(example.numbers(feature.key)), feature.size)
    if rest:
        raise EpisodeError(
            f"key {feature.key!r} holds {count * feature.size + rest} numbers; features.json says {feature.shape} a "
            f"step, so a multiple of {feature.size}. {_CURE}"
        )
    return count


def track(
    example: Example, name: str, parts: Sequence[tuple[str, Feature]], length: int
) -> npt.NDArray[np.float32] | None:
    """Rows (T, size) float32 of features side by side; None where there are none.

    Raises:
        EpisodeError: a key is missing, holds another number of values than `features.json` says, or is not finite.
    """
    if not parts:
        return None
    columns = [as_track(f"{name} ({part})", _rows(example, feature, length), length) for part, feature in parts]
    return np.concatenate(columns, axis=1)


def _rows(example: Example, feature: Feature, length: int) -> npt.NDArray[Any]:
    """(T, size) of numbers."""
    size = feature.size
    assert size is not None, "tracks are of fixed shapes"
    if feature.encoding != "none":
        return np.stack([_decoded(value, feature) for value in _encoded(example, feature, length)])
    values = example.numbers(feature.key)
    if len(values) != length * size:
        raise EpisodeError(
            f"key {feature.key!r} holds {len(values)} numbers for {length} steps; features.json says {feature.shape} a "
            f"step, {length * size} in all. {_CURE}"
        )
    return values.reshape(length, size)


def _encoded(example: Example, feature: Feature, length: int) -> Sequence[bytes]:
    values = example.texts(feature.key)
    if len(values) != length:
        raise EpisodeError(f"key {feature.key!r} holds {len(values)} values for {length} steps. {_CURE}")
    return values


def _decoded(data: bytes, feature: Feature) -> npt.NDArray[Any]:
    """(size,) of one step's value that is one byte string."""
    size = feature.size
    assert size is not None, "tracks and cameras are of fixed shapes"
    if feature.encoding not in ("bytes", "zlib") or feature.dtype == "bfloat16":
        raise EpisodeError(
            f"key {feature.key!r} is {feature.dtype} encoded as {feature.encoding!r}; none, bytes and zlib are read, "
            "of every type but bfloat16. Write it as float32."
        )
    dtype = np.dtype(feature.dtype).newbyteorder("<")
    wanted = size * dtype.itemsize
    if feature.encoding == "zlib" and wanted <= _MOST_DEFLATED * len(data):
        try:
            data = zlib.decompressobj().decompress(data, wanted + 1)
        except zlib.error as error:
            raise EpisodeError(f"key {feature.key!r} is damaged ({error}). Copy the file again.") from error
    if len(data) != wanted:
        raise EpisodeError(
            f"key {feature.key!r} holds {len(data)} bytes a step; features.json says {feature.shape} of "
            f"{feature.dtype}, {wanted} bytes. {_CURE}"
        )
    return np.frombuffer(data, dtype)


def frames_of(example: Example, feature: Feature, length: int, where: str) -> Iterator[Frame]:
    """The frames of one camera.

    Raises:
        EpisodeError: one cannot be decoded, or has another size than the first.
    """
    first: tuple[int, ...] | None = None
    for step, frame in enumerate(_pictures(example, feature, length, where)):
        first = first or frame.shape
        if frame.shape != first:
            raise EpisodeError(
                f"step {step} of {feature.key!r} is {frame.shape}, the first {first}; all frames of an episode must "
                "have one size. Bring them to one size, or leave the episode out."
            )
        yield frame


def _pictures(example: Example, feature: Feature, length: int, where: str) -> Iterator[Frame]:
    if feature.kind == "image":
        from ivideogpt.data.sources.images import decode_image

        for step, data in enumerate(_encoded(example, feature, length)):
            yield decode_image(data, f"{where}: step {step} of {feature.key!r}")
        return
    shape = tuple(size for size in feature.shape if size is not None)
    if feature.encoding != "none":
        for data in _encoded(example, feature, length):
            yield _decoded(data, feature).reshape(shape).astype(np.uint8)
        return
    for row in _rows(example, feature, length):
        if row.min() < 0 or row.max() > 255:
            raise EpisodeError(f"key {feature.key!r} ranges over {row.min()}..{row.max()}; uint8 is 0..255. {_CURE}")
        yield row.astype(np.uint8).reshape(shape)


def instruction_of(example: Example, layout: Layout, length: int) -> str | None:
    """The first instruction of the record that is not empty."""
    for feature in layout.language:
        if feature.key not in example:
            continue
        if feature.kind == "text":
            texts: Iterator[bytes] = iter(example.texts(feature.key))
        else:
            steps = length if feature.key.startswith("steps/") else 1
            texts = (_from_codes(row, feature.key) for row in _rows(example, feature, steps))
        found = next((data for data in texts if data.strip()), None)
        if found is not None:
            return found.decode(errors="replace")
    return None


def _from_codes(codes: npt.NDArray[Any], key: str) -> bytes:
    """Text from its UTF-8 codes, padded with zeros."""
    if codes.min() < 0 or codes.max() > 255:
        raise EpisodeError(
            f"key {key!r} holds codes {codes.min()}..{codes.max()}; those of a text in UTF-8 are 0..255. {_CURE}"
        )
    return bytes(codes[codes != 0].astype(np.uint8))


def metadata_of(example: Example, layout: Layout) -> dict[str, JsonValue]:
    """Scalars and texts of the episode, and the flags of its last step; NaN and infinity become None."""
    metadata: dict[str, JsonValue] = {}
    for name, feature in layout.flags:
        if feature.key in example and feature.kind == "number":
            for flag in example.numbers(feature.key)[-1:]:
                metadata[name] = bool(flag)
    for name, feature in layout.metadata:
        if feature.key not in example or feature.encoding != "none" or feature.kind not in ("text", "number"):
            continue
        if feature.kind == "text":
            for text in example.texts(feature.key)[:1]:
                metadata[name] = text.decode(errors="replace")
            continue
        for value in example.numbers(feature.key)[:1].tolist():
            metadata[name] = bool(value) if feature.dtype == "bool" else value if math.isfinite(value) else None
    return metadata
