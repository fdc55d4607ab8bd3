"""From a file's bytes to a crop: the part of an image within a box, resized and mirrored, straight into a batch.

JPEGs are decoded by libjpeg-turbo: by the native part (`_jpeg.c`), which decodes no more than a crop needs, or else by
simplejpeg. Whatever either of them does not take (other formats and colour spaces, and all damage) goes to Pillow,
which says what is wrong with a file. All three use the same arithmetic, so an image is the same whichever decodes it,
and all release the GIL.
"""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from trainer.errors import InvalidData

_jpeg: Any
try:
    from trainer.data import _jpeg
except ImportError:  # not built, or libjpeg-turbo is not on this machine
    _jpeg = None

NATIVE = _jpeg is not None

Box = tuple[float, float, float, float]

_END_OF_JPEG = b"\xff\xd9"
_MOST_PIXELS = 89_478_485  # as in the native part: beyond, Pillow warns of a decompression bomb, or refuses
_REFUSALS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_MODES = {1: "L", 3: "RGB"}


def size_of(data: bytes | memoryview, *, native: bool = NATIVE) -> tuple[int, int]:
    """The height and width of an image, in pixels as they are stored, by its header alone.

    Raises:
        InvalidData: the header is damaged, or of no known format. The message does not name the file.
    """
    size: tuple[int, int] | None = _jpeg.size_of(data) if native else _simple_size(data)
    if size is None:
        with _refusals(), Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    return size


def decode_crop(
    data: bytes | memoryview, box: Box, out: np.ndarray, *, flip: bool = False, native: bool = NATIVE
) -> None:
    """Decode the part of an image within a box and resize it, as Pillow's `resize(size, BILINEAR, box=box)` does.

    Where the box has at least twice as many pixels as `out` both ways, a JPEG is decoded at 1/2, 1/4 or 1/8 of its
    size, so that the box still has no fewer than `out`. Images are taken as they are stored: EXIF's orientation is not
    applied, transparency dropped. The grey of a JPEG in colour is its luma.

    Args:
        data: the file. The native part doesn't see damage below the box.
        box: (left, top, right, bottom) in pixels of the image, which may be fractions.
        out: (height, width, C) uint8, C-contiguous: RGB for C = 3, grey for C = 1.
        flip: mirror left and right.
        native: use the native part; it must be there.

    Raises:
        InvalidData: the file can't be decoded. The message does not name it, and `out` may have been written to.
        ValueError: the box does not lie within the image, or `out` is not such an array.
    """
    _check(out)
    shrink = _shrink(box, out)
    if bytes(data[-2:]) == _END_OF_JPEG:  # or else it may be cut short, which is Pillow's to judge
        if native:
            if _jpeg.decode_crop(data, box, shrink, out, out.shape, flip):
                return
        elif decoded := _simple_decode(data, shrink, out.shape[2]):
            _resize(*decoded, box, shrink, out, flip)
            return
    _pillow_crop(data, box, shrink, out, flip)


def _check(out: np.ndarray) -> None:
    if out.dtype != np.uint8 or out.ndim != 3 or out.shape[2] not in _MODES or not out.size:
        raise ValueError(f"out is {out.dtype} of shape {out.shape}; accepted is uint8 of (height, width, 1 or 3)")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("out must be C-contiguous and writeable")


def _shrink(box: Box, out: np.ndarray) -> int:
    """How many pixels each way the DCT makes into one: 8, 4, 2 or 1, so that the box keeps no fewer than `out`."""
    left, top, right, bottom = box
    ratio = min((bottom - top) / out.shape[0], (right - left) / out.shape[1])
    return next((shrink for shrink in (8, 4, 2) if shrink <= ratio), 1)


def _simple_size(data: bytes | memoryview) -> tuple[int, int] | None:
    try:
        return simplejpeg.decode_jpeg_header(data)[:2]
    except ValueError:
        return None


def _simple_decode(
    data: bytes | memoryview, shrink: int, channels: int
) -> tuple[Image.Image, tuple[int, int]] | None:
    """A whole JPEG, perhaps scaled, and its width and height in full; None for what Pillow shall judge."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space not in ("Gray", "YCbCr", "RGB") or height * width > _MOST_PIXELS:
            return None
        pixels = simplejpeg.decode_jpeg(
            data,
            "GRAY" if channels == 1 else "RGB",
            min_height=-(-height // shrink),
            min_width=-(-width // shrink),
        )
    except ValueError:  # also for what libjpeg merely warns of
        return None
    return Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]), (width, height)


def _pillow_crop(data: bytes | memoryview, box: Box, shrink: int, out: np.ndarray, flip: bool) -> None:
    mode = _MODES[out.shape[2]]
    with _refusals(), Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if image.format in ("JPEG", "MPO"):
            image.draft(mode, (max(1, width // shrink), max(1, height // shrink)))
        else:
            shrink = 1
        pixels = image.convert(mode)
    _resize(pixels, (width, height), box, shrink, out, flip)


def _resize(
    image: Image.Image, size: tuple[int, int], box: Box, shrink: int, out: np.ndarray, flip: bool
) -> None:
    left, top, right, bottom = box
    if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        raise ValueError(f"the box {box} does not lie within the image of {size[0]}x{size[1]} pixels")
    scaled = (left / shrink, top / shrink, right / shrink, bottom / shrink)
    resized = image.resize((out.shape[1], out.shape[0]), Image.Resampling.BILINEAR, box=scaled)
    pixels = np.asarray(resized).reshape(out.shape)
    out[:] = pixels[:, ::-1] if flip else pixels


@contextmanager
def _refusals() -> Iterator[None]:
    """What Pillow raises for a file that it can't read, as InvalidData."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise InvalidData("it is no image, or damaged at its very beginning") from error
    except _REFUSALS as error:
        raise InvalidData(str(error)) from error
