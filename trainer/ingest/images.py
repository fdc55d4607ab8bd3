"""One image: whether it decodes wholly, and its bytes as they go into a shard."""

import io
from dataclasses import asdict, dataclass

from PIL import Image

# What Pillow calls a format, and the suffix by which everyone's tools decode it. No other decoder is let near the
# bytes of strangers.
FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "PPM": "ppm"}
MOST_PIXELS = 89_478_485  # beyond, Pillow warns of a decompression bomb, and training decodes none
_MPO = {"MPO": "jpg"}  # a JPEG with a second picture behind the first, which Pillow opens as a JPEG


class BrokenImage(Exception):
    """The image can't be used: {detail}"""


@dataclass(frozen=True)
class Encoding:
    """How images are kept: their bytes untouched, or with a shorter side of at most `shorter_side` pixels as JPEGs."""

    shorter_side: int | None = None
    quality: int = 90

    def options(self) -> dict[str, object]:
        """What decides over the bytes."""
        return {} if self.shorter_side is None else asdict(self)


def encode(data: bytes, encoding: Encoding) -> tuple[bytes, str]:
    """The bytes to keep and their suffix, once the image has been decoded to its last row.

    A JPEG in RGB or grey that is small enough keeps its bytes. All else becomes one, in RGB unless it is grey, as
    training decodes it: without its transparency, its EXIF and what these say of its orientation.

    Raises:
        BrokenImage: it can't be decoded, or is of another format than FORMATS.
    """
    if not data:
        raise BrokenImage("it is empty")
    try:
        with Image.open(io.BytesIO(data), formats=list(FORMATS)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise BrokenImage(f"it has {image.width}x{image.height} pixels; at most {MOST_PIXELS:,} are accepted")
            image.verify()  # a PNG's checksums; it can't be decoded afterwards
        with Image.open(io.BytesIO(data), formats=list(FORMATS)) as image:
            image.load()
            return _kept(image, data, encoding)
    except BrokenImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise BrokenImage(f"it is no {', '.join(sorted(FORMATS))}") from error
    except Exception as error:  # damaged bytes can raise anything at all
        raise BrokenImage(str(error) or type(error).__name__) from error


def _kept(image: Image.Image, data: bytes, encoding: Encoding) -> tuple[bytes, str]:
    most, shorter = encoding.shorter_side, min(image.size)
    suffix = (FORMATS | _MPO)[str(image.format)]
    if most is None or (suffix == "jpg" and image.mode in ("RGB", "L") and shorter <= most):
        return data, suffix
    plain = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    if shorter > most:
        width, height = (max(1, round(side * most / shorter)) for side in image.size)
        plain = plain.resize((width, height), Image.Resampling.LANCZOS)  # Pillow's are antialiased
    out = io.BytesIO()
    plain.save(out, "JPEG", quality=encoding.quality)
    return out.getvalue(), "jpg"
