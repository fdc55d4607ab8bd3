"""One image: kept to the byte, made smaller, or told to be broken."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.trainer.ingest.photographs import photograph
from trainer.ingest.images import BrokenImage, Encoding, encode


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(
    ("kind", "mode", "suffix"),
    [("JPEG", "RGB", "jpg"), ("JPEG", "L", "jpg"), ("JPEG", "CMYK", "jpg"), ("PNG", "RGBA", "png"),
     ("PNG", "P", "png"), ("WEBP", "RGB", "webp"), ("BMP", "RGB", "bmp"), ("PPM", "RGB", "ppm")],
)  # fmt: skip
def test_bytes_stay_untouched_under_the_suffix_of_what_they_are(kind: str, mode: str, suffix: str) -> None:
    data = photograph(1, kind=kind, mode=mode)
    assert encode(data, Encoding()) == (data, suffix)


@pytest.mark.parametrize(
    ("kind", "mode", "becomes"),
    [("JPEG", "RGB", "RGB"), ("JPEG", "L", "L"), ("JPEG", "CMYK", "RGB"), ("PNG", "RGBA", "RGB"), ("PNG", "P", "RGB"),
     ("PNG", "LA", "L"), ("PNG", "1", "L"), ("PNG", "I;16", "RGB"), ("WEBP", "RGB", "RGB")],
)  # fmt: skip
def test_what_is_larger_becomes_a_jpeg(kind: str, mode: str, becomes: str) -> None:
    if mode == "I;16":
        out = io.BytesIO()
        Image.fromarray(np.full((30, 40), 40_000, dtype=np.uint16)).save(out, "PNG")
        data = out.getvalue()
    else:
        data = photograph(1, kind=kind, mode=mode)
    made, suffix = encode(data, Encoding(shorter_side=15))
    image = opened(made)
    assert (suffix, image.format, image.mode, image.size) == ("jpg", "JPEG", becomes, (20, 15))


def test_only_what_must_be_is_encoded_again() -> None:
    small, flat = photograph(1, (40, 30)), photograph(1, (40, 30), kind="PNG")
    assert encode(small, Encoding(shorter_side=30)) == (small, "jpg")
    made, suffix = encode(flat, Encoding(shorter_side=64, quality=95))
    assert (suffix, opened(made).size) == ("jpg", (40, 30))
    large = photograph(1, (400, 300))
    assert len(encode(large, Encoding(64, 95))[0]) > len(encode(large, Encoding(64, 30))[0])
    assert encode(large, Encoding(64, 95)) == encode(large, Encoding(64, 95))


def test_what_exif_says_of_the_orientation_is_ignored_and_goes() -> None:
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    opened(photograph(1, (40, 30))).save(out, "JPEG", exif=exif)
    made, _ = encode(out.getvalue(), Encoding(shorter_side=15))
    assert opened(made).size == (20, 15)
    assert not opened(made).getexif()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"no image at all", "it is no BMP, JPEG"),
        (photograph(1)[:300], "[Tt]runcated"),
        (photograph(1)[:-200], "truncated"),
        (photograph(1, kind="PNG")[:-400], "."),
        (photograph(1, kind="PNG").replace(b"IDAT", b"IDAX"), "."),
        (photograph(1, kind="GIF"), "it is no BMP, JPEG"),  # of the many that Pillow knows, few are let in
    ],
)
def test_what_does_not_decode_wholly_is_broken(data: bytes, reason: str) -> None:
    for encoding in (Encoding(), Encoding(shorter_side=8)):
        with pytest.raises(BrokenImage, match=reason):
            encode(data, encoding)
