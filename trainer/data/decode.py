"""From a file's bytes to a crop: the part of an image within a box, resized and mirrored, straight into a batch.

JPEGs are decoded by libjpeg-turbo: by the native part (`_jpeg.c`), which decodes no more than a crop needs, or else by
simplejpeg. Whatever either of them does not take (other formats and colour spaces, and all damage) goes to Pillow,
which says what is wrong with a file. All resize by the same filter, so an image is the same whichever decodes it but
for rounding (1 of 255 at most).

Where the native part is not there, cykooz.resizer resizes: it was measured to take less than half of Pillow's time for
the same pixels. OpenCV has no such filter: its INTER_LINEAR aliases, INTER_AREA is a box.
"""

import io
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from trainer.errors import InvalidData

cykooz_resizer: Any
try:
    import cykooz_resizer
except ImportError:  # there are no wheels for Linux on ARM
    cykooz_resizer = None

_jpeg: Any
try:
    from trainer.data import _jpeg
except ImportError:  # not built, or libjpeg-turbo is not on this machine
    _jpeg = None

NATIVE = _jpeg is not None

Box = tuple[float, float, float, float]

# What Pillow may decode: no other decoder is let near the bytes of strangers.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")

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
        with _refusals(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
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
            _finish(*decoded, box, shrink, out, flip)
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


def _simple_decode(data: bytes | memoryview, shrink: int, channels: int) -> tuple[np.ndarray, int, int] | None:
    """A whole JPEG, perhaps scaled, and its height and width in full; None for what Pillow shall judge."""
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
    return pixels, height, width


def _pillow_crop(data: bytes | memoryview, box: Box, shrink: int, out: np.ndarray, flip: bool) -> None:
    mode = _MODES[out.shape[2]]
    with _refusals(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        if width * height > _MOST_PIXELS:
            raise ValueError(f"it has {width}x{height} pixels, and at most {_MOST_PIXELS:,} are decoded")
        if image.format in ("JPEG", "MPO"):
            image.draft(mode, (max(1, width // shrink), max(1, height // shrink)))
        else:
            shrink = 1
        pixels = np.asarray(image.convert(mode))
    _finish(pixels.reshape(*pixels.shape[:2], -1), height, width, box, shrink, out, flip)


def _finish(pixels: np.ndarray, height: int, width: int, box: Box, shrink: int, out: np.ndarray, flip: bool) -> None:
    """Resize what was decoded, (H, W, C) of an image of `height` and `width` in full, into `out`."""
    left, top, right, bottom = box
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f"the box {box} does not lie within the image of {width}x{height} pixels")
    x, left, right = _reach(left / shrink, right / shrink, out.shape[1])
    y, top, bottom = _reach(top / shrink, bottom / shrink, out.shape[0])
    resize = _resize_by_pillow if cykooz_resizer is None else _resize_by_cykooz
    resized = resize(pixels[y, x], (left, top, right, bottom), out.shape[0], out.shape[1])
    out[:] = resized[:, ::-1] if flip else resized


def _reach(low: float, high: float, count: int) -> tuple[slice, float, float]:
    """The pixels that a filter can reach along one axis, with one to spare, and the ends of the box among them."""
    reach = math.ceil(max(1.0, (high - low) / count)) + 1
    first = max(0, math.floor(low) - reach)
    return slice(first, math.ceil(high) + reach), low - first, high - first


def _resize_by_cykooz(pixels: np.ndarray, box: Box, height: int, width: int) -> np.ndarray:
    rows, columns, channels = pixels.shape
    kind = cykooz_resizer.PixelType.U8 if channels == 1 else cykooz_resizer.PixelType.U8x3
    left, top, right, bottom = box
    options = cykooz_resizer.ResizeOptions(
        cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear),
        crop_box=cykooz_resizer.CropBox(left, top, _extent(left, right), _extent(top, bottom)),
    )
    result = cykooz_resizer.ImageData(width, height, kind)
    # A Resizer is no thread's but its own.
    cykooz_resizer.Resizer().resize(cykooz_resizer.ImageData(columns, rows, kind, pixels.tobytes()), result, options)
    return np.frombuffer(result.get_buffer(), dtype=np.uint8).reshape(height, width, channels)


def _extent(low: float, high: float) -> float:
    """high - low, but so that low + extent is not above high, as rounding may have it."""
    extent = high - low
    return extent if low + extent <= high else math.nextafter(extent, 0)


def _resize_by_pillow(pixels: np.ndarray, box: Box, height: int, width: int) -> np.ndarray:
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    resized = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized).reshape(height, width, -1)


@contextmanager
def _refusals() -> Iterator[None]:
    """What Pillow raises for a file that it can't read, as InvalidData."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise InvalidData("it is no image, or damaged at its very beginning") from error
    except _REFUSALS as error:
        raise InvalidData(str(error)) from error
