"""Files of a LeRobot v3.0 data set, each of many episodes: another begins where one has reached its size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.data.export_lerobot_stats import Colours, Statistics
from ivideogpt.data.sources.recording import Frame
from ivideogpt.errors import EpisodeError

_MEGABYTE = 1024**2
# A key frame every second frame, so that single frames are found fast; no frames out of order.
_H264 = {"crf": "18", "g": "2", "bf": "0", "preset": "fast", "forced-idr": "1"}


class Unfit(EpisodeError):
    """A recording that cannot be written; the message begins with what is wrong with it."""


class Numbering:
    """Chunk and number of the file that is being written."""

    def __init__(self, folder: Path, suffix: str, chunk: int) -> None:
        self._folder, self._suffix, self._chunk = folder, suffix, chunk
        self._count = -1

    @property
    def place(self) -> tuple[int, int]:
        """Chunk, and number of the file in it."""
        return divmod(self._count, self._chunk)

    def following(self) -> tuple[int, int]:
        """The place after this one."""
        return divmod(self._count + 1, self._chunk)

    def begin(self) -> Path:
        """Path of the next file, whose folder is there then."""
        self._count += 1
        chunk, file = self.place
        path = self._folder / f"chunk-{chunk:03d}" / f"file-{file:03d}{self._suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class Tables:
    """Parquet files of one schema, that of the first table; each table is one row group."""

    def __init__(self, folder: Path, megabytes: float, chunk: int) -> None:
        self._numbering = Numbering(folder, ".parquet", chunk)
        self._limit = megabytes * _MEGABYTE
        self._path: Path | None = None
        self._writer: Any = None
        self._schema: Any = None

    def next(self) -> tuple[int, int]:
        """Chunk and file where the next table will lie."""
        full = self._path is None or self._path.stat().st_size >= self._limit
        return self._numbering.following() if full else self._numbering.place

    def write(self, table: Any) -> tuple[int, int]:
        """Write a table; chunk and file where it lies."""
        import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]

        place = self.next()
        if self._path is None or place != self._numbering.place:
            self.close()
            self._path = self._numbering.begin()
            self._schema = self._schema or table.schema
            self._writer = pq.ParquetWriter(self._path, self._schema, compression="snappy")
        self._writer.write_table(table.cast(self._schema))
        return place

    def close(self) -> None:
        """Finish the file that is open, if any."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()


@dataclass(frozen=True)
class Part:
    """Where the frames of an episode lie in a camera's videos, how many there are, and their statistics."""

    place: dict[str, int | float]
    length: int
    statistics: Statistics


class Videos:
    """Videos of one camera, H.264 in MP4, of several episodes each."""

    def __init__(self, folder: Path, fps: float, megabytes: float, chunk: int) -> None:
        self._numbering = Numbering(folder, ".mp4", chunk)
        self._fps, self._rate = fps, Fraction(fps).limit_denominator(10_000)
        self._limit = megabytes * _MEGABYTE
        self._size: tuple[int, int] | None = None
        self._container: Any = None
        self._stream: Any = None
        self._frames = self._bytes = 0

    @property
    def feature(self) -> dict[str, Any]:
        """What `info.json` says of the camera."""
        assert self._size is not None, "an episode is written"
        height, width = self._size
        facts = {"height": height, "width": width, "codec": "h264", "pix_fmt": self._pixels, "is_depth_map": False}
        facts |= {"fps": int(self._fps) if float(self._fps).is_integer() else self._fps, "channels": 3}
        return {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {f"video.{name}": value for name, value in facts.items()} | {"has_audio": False},
        }

    def add(self, frames: Iterator[Frame]) -> Part:
        """Write all frames of one episode; raises Unfit for none, or where the size changes."""
        if self._container is not None and self._bytes >= self._limit:
            self.close()
        start, colours = self._frames if self._container is not None else 0, Colours()
        for frame in frames:
            self._require_size(frame)
            if self._container is None:
                self._begin()
            self._encode(frame, first=not colours.frames)
            colours.add(frame)
        if not colours.frames:
            raise Unfit("no frame; an episode needs at least one. Leave it out.")
        chunk, file = self._numbering.place
        place = {
            "chunk_index": chunk,
            "file_index": file,
            "from_timestamp": start / self._fps,
            "to_timestamp": self._frames / self._fps,
        }
        return Part(place, colours.frames, colours.statistics())

    def close(self) -> None:
        """Finish the file that is open, if any."""
        if self._container is not None:
            container, self._container = self._container, None
            try:
                container.mux(self._stream.encode())
            finally:
                container.close()

    @property
    def _pixels(self) -> str:
        """H.264 halves colour in both directions only where the size can be halved."""
        assert self._size is not None, "a frame is there"
        return "yuv444p" if self._size[0] % 2 or self._size[1] % 2 else "yuv420p"

    def _require_size(self, frame: Frame) -> None:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise Unfit(f"a frame is {frame.dtype} {frame.shape}; it must be uint8 (H, W, 3). Convert it.")
        size = frame.shape[0], frame.shape[1]
        self._size = self._size or size
        if size != self._size:
            raise Unfit(
                f"a frame is {size[1]} x {size[0]}, and the first of the camera is {self._size[1]} x "
                f"{self._size[0]}; all must have one size. Bring them to one."
            )

    def _begin(self) -> None:
        import av

        assert self._size is not None, "a frame is there"
        self._container = av.open(str(self._numbering.begin()), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=self._rate, options=_H264)
        self._stream.height, self._stream.width = self._size
        self._stream.pix_fmt = self._pixels
        self._stream.codec_context.time_base = 1 / self._rate
        self._frames = self._bytes = 0

    def _encode(self, frame: Frame, *, first: bool) -> None:
        import av
        from av.video.frame import PictureType

        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24").reformat(format=self._pixels)
        picture.pts, picture.time_base = self._frames, 1 / self._rate
        picture.pict_type = PictureType.I if first else PictureType.NONE
        for packet in self._stream.encode(picture):
            self._bytes += packet.size
            self._container.mux(packet)
        self._frames += 1
