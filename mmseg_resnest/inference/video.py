# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Segmenting videos and live streams frame by frame."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import UserError
from ..io.image_files import save_image
from ..io.up_to_date import Journal, fingerprint
from .files import RECORD, claim
from .segmentor import Segmentor

__all__ = ["VIDEO_SUFFIXES", "is_stream", "is_video", "predict_video"]

VIDEO_SUFFIXES = frozenset(
    {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
)
_STREAM_SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "udp://", "tcp://", "rtp://")
_DEFAULT_RATE = 25.0
# What a file says of its number of frames is an estimate in some formats.
_FRAMES_WITHIN, _SHARE_WITHIN = 2, 0.02


def _suffix(source: str) -> str:
    return os.path.splitext(source.split("?")[0])[1].lower()


def is_stream(source: str) -> bool:
    """Whether a source is live: the number of a camera, or an address of a stream."""
    if source.startswith(("http://", "https://")):
        return _suffix(source) in (".m3u8", ".mjpg", ".mjpeg", ".sdp")
    return source.isdecimal() or source.startswith(_STREAM_SCHEMES)


def is_video(source: str) -> bool:
    """Whether a source is a video, by the suffix of its path or address."""
    return _suffix(source) in VIDEO_SUFFIXES


class _Writer:
    """A video file that gets its name when it is complete. It has no sound."""

    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        # Not atomic_open: OpenCV writes by name, and takes the format from its suffix. In a
        # relative path it takes what stands before a colon for a protocol.
        part = path.with_name(f".{path.stem[:50]}.{secrets.token_hex(4)}.mp4")
        self._part = part.absolute()
        self.path = path
        self._frames = 0
        # Encoders of MPEG-4 take even edges only.
        self._size = (size[1] // 2 * 2 or 2, size[0] // 2 * 2 or 2)
        code = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(self._part), code, rate, self._size)
        if not self._writer.isOpened():
            self.discard()
            raise UserError("missing-package", path, "OpenCV cannot write MPEG-4 videos here")

    def write(self, frame: NDArray[np.uint8]) -> None:
        width, height = self._size
        if frame.shape[0] < height or frame.shape[1] < width:
            frame = cv2.resize(frame, self._size)  # type: ignore[assignment]
        self._writer.write(np.ascontiguousarray(frame[:height, :width, ::-1]))
        self._frames += 1

    def finish(self) -> None:
        """Give it its name; UserError if it is not complete, of which OpenCV says nothing."""
        self._writer.release()
        written = cv2.VideoCapture(str(self._part))
        frames = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
        written.release()
        if frames < self._frames:
            said = f"got {frames:,} of {self._frames:,} frames; if the disk is full, free space or "
            raise UserError("not-writable", self.path, said + "choose another folder")
        try:
            os.replace(self._part, self.path)
        except OSError as error:
            said = f"cannot be written ({error.strerror}); choose another folder"
            raise UserError("not-writable", self.path, said) from error

    def discard(self) -> None:
        self._writer.release()
        self._part.unlink(missing_ok=True)


def _check_name(file: Path) -> None:
    """Raise UserError if a file cannot be there, before hours of work."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        said = f"cannot be written ({error.strerror}); shorten the name of the video"
        raise UserError("not-writable", file, said) from error


def _make_room(folder: Path, record: Journal, source: str) -> None:
    """Remove the frames of an earlier video from a folder, if they are of this program."""
    frames = list(folder.glob("[0-9]" * 6 + ".png"))
    if frames and not record.names(folder):
        message = f"holds {frames[0].name}, which is not of this program; name another folder"
        raise UserError("output-exists", f"--out: {folder}", message)
    for frame in frames:
        frame.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    record.add({folder: ""}, input=source)  # these are, also if this process dies


def _frames(capture: cv2.VideoCapture, most: int | None) -> Iterator[NDArray[np.uint8]]:
    number = 0
    while most is None or number < most:
        good, frame = capture.read()
        if not good:
            return
        number += 1
        yield np.ascontiguousarray(frame[:, :, ::-1])


def predict_video(
    model: Segmentor,
    source: str,
    out: str | os.PathLike[str],
    outputs: Sequence[str] = ("labels", "overlay"),
    opacity: float = 0.5,
    max_frames: int | None = None,
    overwrite: bool = False,
    tile: int = 0,
) -> dict[str, Any]:
    """Segment a video or a stream.

    ``NAME_overlay.mp4`` and ``NAME_side.mp4`` (image and overlay) have the video's size and rate;
    ``NAME/000001.png`` ... are label maps. A stream goes on until it ends, ``max_frames`` is
    reached, or Ctrl-C; what was written by then is kept. A video that is interrupted leaves no
    ``.mp4``; of one that OpenCV cannot read to its end, the frames before are kept. A file is
    skipped if the record ``predictions.jsonl`` has its outputs and they, the
    file, the model and the settings have not changed.

    Args:
        model: The model.
        source: A file, an address, or the number of a camera.
        out: The folder to write to.
        outputs: Some of ``labels``, ``overlay``, ``side``.
        opacity: Of the colours, 0..1.
        max_frames: The most frames to read.
        overwrite: Do a video again whose outputs are up to date.
        tile: Edge of the tiles that larger frames are cut into; 0 never cuts.

    Returns:
        ``frames``, ``seconds``, ``skipped`` (all outputs were there), ``stopped`` (by Ctrl-C) and
        ``files``.

    Raises:
        UserError: It cannot be opened, holds no frame, or fewer than it says (what was read is
            written), an output is not one for videos or cannot be written, or files of another
            program lie where outputs go.
    """
    if not set(outputs) <= {"labels", "overlay", "side"}:
        raise UserError("argument", "outputs", "a video has labels, overlay and side only")
    live = is_stream(source)
    stem = Path(source.split("?")[0]).stem
    if live:
        kind = f"camera{source}" if source.isdecimal() else "stream"
        stem = f"{kind}_{time.strftime('%Y%m%d_%H%M%S')}"
    folder = Path(out)
    videos = {kind: folder / f"{stem}_{kind}.mp4" for kind in outputs if kind != "labels"}
    maps = folder / stem if "labels" in outputs else None
    files = [*videos.values(), *([maps] if maps else [])]
    model.tiling((1, 1), tile)
    record, made_from = Journal(folder / RECORD), dict[Path, str]()
    is_file = os.path.isfile(source)
    if is_file:
        same = fingerprint(Path(source), model.fingerprint, max_frames, *filter(None, [tile]))
        made_from = {path: fingerprint(same, kind, opacity) for kind, path in videos.items()}
        made_from |= {maps: same} if maps else {}
    if made_from and not overwrite and record.has(made_from):
        return {"frames": 0, "seconds": 0.0, "skipped": True, "stopped": False, "files": files}

    named = os.path.abspath(source) if is_file else source  # as of a writer's part
    capture = cv2.VideoCapture(int(source) if live and source.isdecimal() else named)
    if not capture.isOpened():
        what = f"camera {source}" if source.isdecimal() else f"video {source}"
        raise UserError("format", what, "cannot be opened, or OpenCV does not read its format")
    for file in files:
        _check_name(file)
    claim(record, videos.values())
    rate = capture.get(cv2.CAP_PROP_FPS)
    rate = rate if 0 < rate <= 240 else _DEFAULT_RATE
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if not live else 0
    total = min(total, max_frames) if max_frames and total > 0 else total
    writers: dict[str, _Writer] = {}
    begin, number, stopped = time.monotonic(), 0, True
    if maps is not None:
        _make_room(maps, record, source)
    frames = _frames(capture, max_frames)
    # A live frame is segmented when it comes; those of a file go through the network together.
    batches = ([frame] for frame in frames) if live else [frames]
    results = (result for some in batches for result in model.attempts(some, tile=tile))
    # Ctrl-C ends a stream as its own end would; it still interrupts a video.
    stoppable = contextlib.suppress(KeyboardInterrupt) if live else contextlib.nullcontext()
    try:
        with (
            tqdm(total=max(total, 0) or None, desc="frames", disable=None, leave=False) as bar,
            stoppable,
        ):
            for result in results:
                number += 1
                if isinstance(result, UserError):
                    raise UserError(result.code, f"{source}, frame {number}", result.message)
                drawn = np.asarray(result.overlay(opacity))
                for kind, path in videos.items():
                    pair = [result.image, drawn]
                    picture = drawn if kind == "overlay" else np.concatenate(pair, axis=1)
                    if kind not in writers:
                        writers[kind] = _Writer(path, rate, picture.shape[:2])
                    writers[kind].write(picture)
                if maps is not None:
                    save_image(result.label_image(), maps / f"{number:06d}.png")
                bar.update()
            stopped = False
        if not number:
            raise UserError("format", f"video {source}", "holds no frame that OpenCV can read")
        for writer in writers.values():
            writer.finish()
        writers = {}
        if total - number > max(_FRAMES_WITHIN, _SHARE_WITHIN * total):
            said = f"OpenCV reads {number:,} of its {total:,} frames and stops at frame "
            said += f"{number + 1:,}, so it is cut off or damaged there; the outputs end at frame "
            said += f"{number:,}; copy it again, or take those frames alone (--max-frames {number})"
            raise UserError("corrupt", f"video {source}", said)
        if made_from:
            record.add(made_from, input=source, frames=number)
    finally:
        capture.release()
        for writer in writers.values():
            writer.discard()
    seconds = time.monotonic() - begin
    return {
        "frames": number, "seconds": seconds, "skipped": False, "stopped": stopped, "files": files
    }  # fmt: skip
