"""Parts of encoded images."""

from io import BytesIO

import numpy as np
from PIL import Image

from trainer.errors import InvalidData


def size_of(data: bytes | memoryview) -> tuple[int, int]:
    try:
        with Image.open(BytesIO(data)) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidData(str(error)) from error


def decode_crop(
    data: bytes | memoryview, box: tuple[float, float, float, float], out: np.ndarray, *, flip: bool = False
) -> None:
    try:
        with Image.open(BytesIO(data)) as image:
            whole = image.convert("L" if out.shape[2] == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidData(str(error)) from error
    pixels = np.asarray(whole.resize((out.shape[1], out.shape[0]), Image.Resampling.BILINEAR, box=box))
    pixels = pixels.reshape(out.shape)
    out[:] = pixels[:, ::-1] if flip else pixels
