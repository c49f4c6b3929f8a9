"""Video files: frames by their number in order of presentation, as they are meant to be shown.

Nothing is believed that a header says of lengths. Rotation, full range and BT.709 are respected; colours without a tag
are BT.601 of limited range. A decoder stays open between calls, and is moved by seeking only where that is surely
right: to the key frame before a frame whose time is known.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivideogpt.data.sources.recording import Frame
from ivideogpt.data.sources.video_decoder import Decoder, Timetable
from ivideogpt.data.sources.video_parts import size_and_fault
from ivideogpt.errors import EpisodeError
from ivideogpt.files import look_at

if TYPE_CHECKING:
    from av import VideoFrame

_LITTLE = 64  # frames that are sooner decoded than the whole file is searched for key frames


class Video:
    """One video file, opened when it is first needed and kept open.

    Of several video streams the first is taken that is marked as default, or the first; cover pictures do not count.
    Frames are (H, W, 3) uint8 RGB, turned as the file says. Can be pickled; the copy opens the file by itself.

    Args:
        source: path of the file, or all of its bytes.
        name: what messages call bytes: the path of the file they are from, and where in it. Beside a path, what to
            add to it.

    Raises:
        EpisodeError: the path cannot be looked at.
    """

    def __init__(self, source: Path | str | bytes, name: str = "") -> None:
        self._source = source if isinstance(source, bytes) else look_at(source, EpisodeError)
        if isinstance(self._source, bytes):
            self._where = name or f"video of {len(self._source)} bytes"
        else:
            self._where = f"{self._source}, {name}" if name else str(self._source)
        self._decoder: Decoder | None = None
        self._length: int | None = None  # known once the end has been reached
        self._timetable: Timetable | None = None
        self._searched = False

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_decoder": None}

    def close(self) -> None:
        """Close the file; another call of `frames` opens it again."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    @property
    def frame_rate(self) -> float | None:
        """Frames a second in the mean, if the file says."""
        rate = self._opened().rate
        return rate if rate is not None and 0 < rate < 1e6 else None

    @property
    def stream(self) -> tuple[int, int]:
        """Which stream of the file is read, and how many video streams there are."""
        decoder = self._opened()
        return decoder.number, decoder.choices

    def frames(self, start: int = 0, count: int | None = None) -> Iterator[Frame]:
        """Frames from number `start` on, one in memory at a time.

        Args:
            start: number of the first frame, in order of presentation.
            count: how many; None goes on to the end.

        Raises:
            EpisodeError: on the way, where the file is missing, is no video, breaks off, changes size, or holds fewer
                frames than asked for. Frames before that place have been given by then.
        """
        if start < 0 or (count is not None and count < 0):
            raise EpisodeError(
                f"{self._where}: {count} frames from {start} on are asked for; neither may be negative. Mend the "
                "table that says where the episode lies in the video."
            )
        number = start
        while count is None or number < start + count:
            frame = self._frame(number)
            if frame is None:
                break
            yield frame
            number += 1
        if (self._length is not None and number > self._length) or (count is not None and number < start + count):
            wanted = f"frames {start} to {start + count - 1}" if count else f"frames from {start} on"
            raise EpisodeError(
                f"{self._where}: holds {self._length} frames; {wanted} are asked for. Copy the file again, or mend the "
                "table that says where the episode lies in the video."
            )

    def count(self) -> int:
        """How many frames there are: from the packets where each is a frame, else by decoding all.

        Raises:
            EpisodeError: as `frames`.
        """
        if self._length is None:
            self._opened()
            _, fault = size_and_fault(self._source)
            timetable = None if fault else self._times()
            if timetable is not None:
                return len(timetable.times)
            while self._length is None:
                self._move_to(self._opened().at + 1)
        return self._length

    def _frame(self, number: int) -> Frame | None:
        """Frame `number`; None past the end."""
        if self._length is not None and number >= self._length:
            return None
        if not self._move_to(number):
            return None
        decoder = self._opened()
        picture = self._next()
        if picture is None:
            self._length = decoder.at
            return None
        return decoder.as_rgb(picture)

    def _opened(self) -> Decoder:
        if self._decoder is None:
            self._decoder = Decoder(self._source, self._where)
        return self._decoder

    def _next(self) -> VideoFrame | None:
        try:
            return self._opened().next()
        except EpisodeError:
            self.close()  # it must not be taken for the end
            raise

    def _move_to(self, number: int) -> bool:
        """Move the decoder in front of frame `number`; False where the video ends before it."""
        decoder = self._opened()
        if not 0 <= number - decoder.at <= _LITTLE and number > _LITTLE and self._seek(number):
            return True
        decoder = self._opened()
        if decoder.at > number:
            self.close()
            decoder = self._opened()
        while decoder.at < number:
            if self._next() is None:
                self._length = decoder.at
                return False
        return True

    def _seek(self, number: int) -> bool:
        """Jump in front of frame `number`; False, with a decoder somewhere, where that is not surely right."""
        timetable = self._times()
        if timetable is None or number >= len(timetable.times):
            return False
        before = bisect_right(timetable.keys, number) - 1
        decoder = self._opened()
        if before >= 0 and timetable.keys[before] <= decoder.at <= number:
            return False  # no key frame lies between: going on is as good
        for key in dict.fromkeys((max(0, before), max(0, before - 2))):
            if decoder.jump(timetable, timetable.keys[key], number):
                return True
        self.close()
        return False

    def _times(self) -> Timetable | None:
        if not self._searched:
            self._searched = True
            with Decoder(self._source, self._where) as decoder:
                first = decoder.next()
            if first is not None and first.pts is not None:
                with Decoder(self._source, self._where) as decoder:
                    self._timetable = decoder.timetable(first.pts)
        return self._timetable
