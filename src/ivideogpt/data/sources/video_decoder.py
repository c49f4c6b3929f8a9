"""Decoding a video file from where it stands, and moving about in it."""

from __future__ import annotations

import heapq
import io
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ivideogpt.data.sources.images import MOST_PIXELS, require_picture_size
from ivideogpt.data.sources.recording import Frame
from ivideogpt.data.sources.video_parts import size_and_fault
from ivideogpt.errors import EpisodeError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

_CURE = "Copy or record it again, or cut it in front of this place."

# Containers that hold frames themselves; others may be lists that name further files or addresses.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,ogg,flv"

# Decoders for which each packet is one shown frame, so that packets tell the times of all frames.
_FRAME_A_PACKET = {"h264", "hevc", "libdav1d", "libaom-av1", "av1", "mjpeg", "ffv1"}

# AVCOL_SPC_* as they come, to SWS_CS_*; all others are BT.601.
_BT709, _BT601 = 1, 5
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_LIMITED, _FULL = 1, 2

_DEFAULT, _COVER = 1, 0x400  # AV_DISPOSITION_*: the stream to take, and a picture that is no video


@dataclass(frozen=True)
class Timetable:
    """Times of all frames, in order of presentation, and the numbers of key frames."""

    times: list[int]
    keys: list[int]


class Decoder:
    """An open file and the place in it: `at` is the number of the frame that comes next."""

    def __init__(self, source: Path | bytes, where: str) -> None:
        from av.video.reformatter import VideoReformatter

        self.where, self.source = where, source
        self.at = 0
        self.container = _open(source, where)
        try:
            self.stream, self.choices = self._choose()
            self.number = self.stream.index
            rate = self.stream.average_rate or self.stream.guessed_rate
            self.rate = None if not rate else float(rate)
            context = self.stream.codec_context
            if context.width or context.height:
                require_picture_size(context.width, context.height, where)
            context.thread_count = 1  # work is shared out by files
            context.options = {"max_pixels": str(MOST_PIXELS)}
            self.complete = context.codec.name in _FRAME_A_PACKET
        except Exception:
            self.container.close()
            raise
        self.reformatter = VideoReformatter()
        self.threads = {"threads": 1} if "threads" in (VideoReformatter.reformat.__doc__ or "") else {}
        self.size: tuple[int, int] | None = None
        self.waiting: VideoFrame | None = None  # decoded already, and comes next
        self.pictures = self._decode()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.pictures.close()
        self.container.close()

    def next(self) -> VideoFrame | None:
        """The next picture as the codec has it; None at the end."""
        picture = self.waiting or next(self.pictures, None)
        self.waiting = None
        if picture is not None:
            if picture.is_corrupt:
                raise EpisodeError(f"{self.where}: damaged at frame {self.at}. {_CURE}")
            self.at += 1
        elif self.at == 0:
            raise EpisodeError(f"{self.where}: no frame in it. {_CURE}")
        return picture

    def as_rgb(self, picture: VideoFrame) -> Frame:
        """A picture as it is meant to be shown."""
        size = picture.width, picture.height
        if self.size is None:
            require_picture_size(*size, self.where)
            self.size = size
        elif size != self.size:
            raise EpisodeError(
                f"{self.where}: frame {self.at - 1} is {size[0]} x {size[1]} and the first {self.size[0]} x "
                f"{self.size[1]}; all must have one size. Bring them to one, or cut the video there."
            )
        options: dict[str, Any] = {}
        if not picture.format.is_rgb and len(picture.format.components) >= 3:
            full = picture.color_range == _FULL or picture.format.name.startswith("yuvj")
            matrix = _MATRICES.get(int(picture.colorspace), _BT601)
            options = {
                "src_colorspace": matrix,
                # RGB has no matrix; older PyAV leaves the source's out where both are the same.
                "dst_colorspace": _BT709 if matrix == _BT601 else _BT601,
                "src_color_range": _FULL if full else _LIMITED,
                "dst_color_range": _FULL,
            }
        try:
            rgb = self.reformatter.reformat(picture, format="rgb24", **options, **self.threads)
            return _turned(cast(Frame, rgb.to_ndarray()), picture)
        except Exception as error:  # whatever the scaler says
            raise EpisodeError(
                f"{self.where}: frame {self.at - 1}, {picture.format.name}, cannot be made RGB ({error}). Convert it "
                "to H.264 with ffmpeg -pix_fmt yuv420p."
            ) from error

    def timetable(self, first: int) -> Timetable | None:
        """Times of all frames from time `first` on; None where packets do not tell. Reads the file to its end."""
        if not self.complete:
            return None
        shown: list[tuple[int, bool]] = []
        try:
            for packet in self.container.demux(self.stream):
                if packet.size and not packet.is_discard:
                    if packet.pts is None:
                        return None
                    shown.append((packet.pts, packet.is_keyframe))
        except Exception:  # what lies before the damage can be found; decoding tells of it
            pass
        shown = sorted(entry for entry in shown if entry[0] >= first)
        times = [time for time, _ in shown]
        if len(set(times)) < len(times):
            return None
        return Timetable(times, [number for number, (_, key) in enumerate(shown) if key])

    def jump(self, timetable: Timetable, key: int, number: int) -> bool:
        """Seek key frame `key` and go on to frame `number`; False, anywhere, where that does not lead there."""
        self.pictures.close()
        self.waiting = None
        try:
            self.container.seek(timetable.times[key], stream=self.stream, backward=True)
            self.pictures = self._decode()
            target = timetable.times[number]
            reached = (picture for picture in self.pictures if picture.pts is None or picture.pts >= target)
            self.waiting = next(reached, None)
        except Exception:  # decoding from the start tells what is wrong
            return False
        self.at = number
        return self.waiting is not None and self.waiting.pts == target

    def _choose(self) -> tuple[VideoStream, int]:
        marks = {s.index: _disposition(s) for s in self.container.streams.video}
        streams = [s for s in self.container.streams.video if not marks[s.index] & _COVER]
        if not streams:
            raise EpisodeError(f"{self.where}: no video in this file. Give a file that holds some.")
        chosen = next((s for s in streams if marks[s.index] & _DEFAULT), streams[0])
        if chosen.codec_context is None:
            raise EpisodeError(
                f"{self.where}: no decoder for this video is installed. Convert it to H.264 with ffmpeg."
            )
        return chosen, len(streams)

    def _decode(self) -> Generator[VideoFrame]:
        """Pictures from here on; then an error, unless the end was reached without a fault."""
        fault, sent, last = "", list[int](), None
        try:
            for packet in self.container.demux(self.stream):
                if packet.is_corrupt:
                    fault = "a packet is cut"
                    break
                if self.complete and packet.size and not packet.is_discard and packet.pts is not None:
                    heapq.heappush(sent, packet.pts)
                for picture in packet.decode():
                    last = self._require_none_lost(sent, picture, last)
                    yield picture
        except EpisodeError:
            raise
        except Exception as error:  # PyAV has errors of many bases
            fault = getattr(error, "strerror", None) or str(error)
        if fault:
            yield from self._rest()
        elif sent and last is not None:
            fault = f"{len(sent)} of its last frames cannot be decoded"
        fault = size_and_fault(self.source)[1] or fault
        if fault:
            raise EpisodeError(f"{self.where}: breaks off after {self.at} frames ({fault}). {_CURE}")

    def _rest(self) -> Iterator[VideoFrame]:
        """What the decoder still holds back of the frames before a fault."""
        try:
            pictures = self.stream.codec_context.decode(None)
        except Exception:  # the fault is told anyway
            return
        yield from pictures

    def _require_none_lost(self, sent: list[int], picture: VideoFrame, last: int | None) -> int | None:
        """Compare a frame's time with those of the packets before it; frames in front of the first may be lost."""
        if picture.pts is None:
            return last
        while sent and sent[0] <= picture.pts:
            time = heapq.heappop(sent)
            if time < picture.pts and last is not None:
                raise EpisodeError(f"{self.where}: damaged at frame {self.at}, which cannot be decoded. {_CURE}")
        return picture.pts


def _disposition(stream: VideoStream) -> int:
    mark = getattr(stream, "disposition", 0)  # PyAV 13 has none, later ones a number or a flag
    return int(getattr(mark, "value", mark))


def _open(source: Path | bytes, where: str) -> InputContainer:
    import av

    if not isinstance(source, bytes):
        if source.is_dir():
            raise EpisodeError(f"{where}: this is a folder. Name one of the videos in it.")
        if not source.is_file():
            raise EpisodeError(f"{where}: no such file. Give the path of a video.")
    options = {"format_whitelist": _CONTAINERS, "max_pixels": str(MOST_PIXELS)}
    try:
        # An absolute path is never taken for an address.
        file = io.BytesIO(source) if isinstance(source, bytes) else str(source.absolute())
        return av.open(file, "r", options=options, metadata_errors="ignore")
    except PermissionError as error:
        raise EpisodeError(f"{where}: no permission to read it. Change its permissions or copy it.") from error
    except Exception as error:  # PyAV has errors of many bases
        size, _ = size_and_fault(source)
        reason = getattr(error, "strerror", None) or str(error)
        raise EpisodeError(
            f"{where}: these {size} bytes cannot be opened as a video ({reason}): cut before the index, damaged, or no "
            "video at all. Copy or record it again."
        ) from error


def _turned(frame: Frame, picture: VideoFrame) -> Frame:
    """Apply the display matrix: turned by quarters, mirrored, or both."""
    from av.sidedata.sidedata import Type

    held = cast(Mapping[Any, Any], picture.side_data)
    if not len(held) or Type.DISPLAYMATRIX not in held:
        return frame
    matrix = held[Type.DISPLAYMATRIX]
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()  # x is shown at a x + c y, y at b x + d y
    if abs(b) > abs(a):
        frame, a, d = frame.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(frame[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
