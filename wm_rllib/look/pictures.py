"""Frames as files: PNG, JPEG, GIF and MP4, with their captions. Pillow comes with matplotlib."""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wm_rllib.runs.errors import CommandError

if TYPE_CHECKING:
    from PIL.Image import Image

Frame = np.ndarray
SUFFIXES = (".gif", ".mp4", ".png")
PANEL_WIDTH = 300
BAR, MARGIN = 44, 8
INK, SOFT, PAPER = (31, 41, 51), (134, 142, 150), (255, 255, 255)


def data_uri(frame: Frame, *, quality: int | None = None) -> str:
    """A frame as a data URI: PNG, or JPEG of a quality up to 95."""
    buffer = io.BytesIO()
    kind = "png" if quality is None else "jpeg"
    _image(frame).save(buffer, format=kind, **({} if quality is None else {"quality": quality}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shrink(frame: Frame, width: int) -> Frame:
    """A frame of at most this width."""
    image = _image(frame)
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))))
    return np.asarray(image)


def cut_height(frames: Sequence[Frame], margin: int = 12) -> list[Frame]:
    """The frames, all of one size, without the rows above and below all that any of them shows."""
    background = frames[0][0, 0]
    shown = np.any([(frame != background).any((1, 2)) for frame in frames], 0).nonzero()[0]
    if not len(shown):
        return list(frames)
    top, bottom = max(0, shown[0] - margin), shown[-1] + margin + 1
    return [frame[top:bottom] for frame in frames]


def side_by_side(frames: Sequence[Frame], titles: Sequence[str], captions: Sequence[str]) -> Frame:
    """Panels beside each other, a title and a caption above each."""
    from PIL import Image, ImageDraw, ImageFont

    panels = [shrink(frame, PANEL_WIDTH) for frame in frames]
    height = max(panel.shape[0] for panel in panels)
    canvas = Image.new("RGB", (len(panels) * (PANEL_WIDTH + MARGIN) - MARGIN, height + BAR), PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, (panel, title, caption) in enumerate(zip(panels, titles, captions, strict=True)):
        x = index * (PANEL_WIDTH + MARGIN)
        canvas.paste(Image.fromarray(panel), (x + (PANEL_WIDTH - panel.shape[1]) // 2, BAR))
        draw.text((x + 6, 4), title, fill=INK, font=ImageFont.load_default(15))
        draw.text((x + 6, 24), caption, fill=SOFT, font=ImageFont.load_default(12))
    return np.asarray(canvas)


def strip(rows: Sequence[Sequence[Frame]], labels: Sequence[str], columns: Sequence[str], width: int) -> Frame:
    """Rows of small frames, a label before each row and one above each column."""
    from PIL import Image, ImageDraw, ImageFont

    small = [[shrink(frame, width) for frame in row] for row in rows]
    height, left, top = small[0][0].shape[0], 76, 20
    size = (left + len(columns) * (width + 4), top + len(rows) * (height + 4))
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for x, column in enumerate(columns):
        draw.text((left + x * (width + 4) + 4, 2), column, fill=SOFT, font=ImageFont.load_default(12))
    for y, (row, label) in enumerate(zip(small, labels, strict=True)):
        draw.text((2, top + y * (height + 4) + height // 2 - 8), label, fill=INK, font=ImageFont.load_default(13))
        for x, frame in enumerate(row):
            canvas.paste(Image.fromarray(frame), (left + x * (width + 4), top + y * (height + 4)))
    return np.asarray(canvas)


def _image(frame: Frame) -> Image:
    from PIL import Image

    return Image.fromarray(frame)


def check_output(output: Path) -> None:
    """Makes sure, before anything takes time, that a file of this name can be written.

    Raises:
        CommandError: If not.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise CommandError(f"--output {output} must end with {', '.join(SUFFIXES)}. Fix: --output dream.gif.")
    if output.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise CommandError(
            f"--output {output}: MP4 needs imageio-ffmpeg, which is not installed. Fix: pip install imageio-ffmpeg, or "
            f"--output {output.with_suffix('.gif')}."
        )
    check_folder(output)


def check_folder(output: Path) -> None:
    """Makes sure that a file can lie here.

    Raises:
        CommandError: If its folder is missing, or it is a folder itself.
    """
    if output.is_dir() or not output.absolute().parent.is_dir():
        reason = "is a folder" if output.is_dir() else f"cannot be written: {output.absolute().parent} does not exist"
        raise CommandError(f"--output {output} {reason}. Fix: another --output.")


def write_animation(output: Path, frames: Sequence[Frame], frames_per_second: int) -> None:
    """Writes an animation (.gif, .mp4), or its first frames one below the other (.png)."""
    if output.suffix.lower() == ".png":
        chosen = frames[:: max(1, -(-len(frames) // 6))]
        _image(np.concatenate(list(chosen))).save(output, optimize=True)
    elif output.suffix.lower() == ".mp4":
        _write_mp4(output, frames, frames_per_second)
    else:
        from PIL.Image import Dither

        images = [_image(frame).quantize(128, dither=Dither.NONE) for frame in frames]
        duration = round(1000 / frames_per_second)
        last = [duration] * (len(images) - 1) + [1500]
        images[0].save(output, save_all=True, append_images=images[1:], duration=last, loop=0, optimize=True)


def _write_mp4(output: Path, frames: Iterable[Frame], frames_per_second: int) -> None:
    import imageio_ffmpeg

    frames = [_even(frame) for frame in frames]
    size = (frames[0].shape[1], frames[0].shape[0])
    writer: Any = imageio_ffmpeg.write_frames(str(output), size, fps=frames_per_second, macro_block_size=2)
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()


def _even(frame: Frame) -> Frame:
    """Without its last row or column where their number is odd, which H.264 cannot have."""
    return frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
