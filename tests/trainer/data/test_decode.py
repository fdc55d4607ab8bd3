"""Crops straight from JPEGs: native, simplejpeg and Pillow give the same, and no damaged file does harm.

How near is near: all share libjpeg's decoding, the geometry and the weights, so that only the rounding between the two
passes of resizing differs, where Pillow goes down before across. Either rounding is off by a half at most, averaged
with weights that add up to 1, then rounded again: results differ by 1 of 255 at most.
"""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.system_packages import NATIVE_DECODER
from trainer.data.decode import Box, decode_crop, size_of
from trainer.errors import InvalidData

ROUNDING = 1
PARTS = [pytest.param(False, id="fallback"), pytest.param(True, id="native", marks=NATIVE_DECODER.mark)]
SUBSAMPLINGS = ["4:4:4", "4:2:2", "4:2:0", "4:1:1", "grey"]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Edges, gradients and noise: (H, W, 3) uint8."""
    random = np.random.default_rng([height, width, seed])
    rows, columns = np.mgrid[:height, :width]
    waves = 90 * np.sin((rows + 2 * columns)[..., None] / random.uniform(1, 20, 3))
    blocks = np.kron(random.integers(-60, 60, (height // 7 + 1, width // 7 + 1, 3)), np.ones((7, 7, 1)))
    pixels = 128 + waves + blocks[:height, :width] + random.normal(0, 10, (height, width, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, *, mode: str = "RGB", form: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form, **options)
    return file.getvalue()


def reference(data: bytes, box: Box, shape: tuple[int, int, int], *, shrink: int = 1, flip: bool = False) -> np.ndarray:
    """What Pillow makes of it."""
    mode = "L" if shape[2] == 1 else "RGB"
    with Image.open(io.BytesIO(data)) as image:
        scaled = -(-image.width // shrink), -(-image.height // shrink)
        image.draft(mode, (max(1, image.width // shrink), max(1, image.height // shrink)))
        assert image.format != "JPEG" or image.size == scaled
        pixels = image.convert(mode)
    resized = pixels.resize((shape[1], shape[0]), Image.Resampling.BILINEAR, box=tuple(side / shrink for side in box))
    array = np.asarray(resized).reshape(shape)
    return array[:, ::-1] if flip else array


def crop(data: bytes, box: Box, shape: tuple[int, int, int], *, flip: bool = False, native: bool = False) -> np.ndarray:
    out = np.full(shape, 77, dtype=np.uint8)
    decode_crop(data, box, out, flip=flip, native=native)
    return out


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


@st.composite
def sides(draw: st.DrawFn, length: int) -> tuple[float, float]:
    """Two ends of a box: anywhere, the whole, at an edge, or one pixel."""
    kind = draw(st.sampled_from(["any", "whole", "begin", "end", "pixel"]))
    if kind == "whole":
        return 0.0, float(length)
    if kind == "pixel":
        first = draw(st.integers(0, length - 1))
        return float(first), first + 1.0
    low = 0.0 if kind == "begin" else draw(st.floats(0, length - 0.1))
    return low, float(length) if kind == "end" else draw(st.floats(min(low + 0.05, length), length))


@st.composite
def crops(draw: st.DrawFn) -> tuple[bytes, Box, tuple[int, int, int], bool]:
    height, width = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    subsampling = draw(st.sampled_from(SUBSAMPLINGS))
    options: dict[str, Any] = {
        "quality": draw(st.integers(20, 98)),
        "progressive": draw(st.booleans()),
        "restart_marker_blocks": draw(st.sampled_from([0, 0, 1, 5])),
    }
    if subsampling == "grey":
        options["mode"] = "L"
    else:
        options["subsampling"] = subsampling
    data = encode(picture(height, width, draw(st.integers(0, 9))), **options)
    left, right = draw(sides(width))
    top, bottom = draw(sides(height))
    shape = draw(st.integers(1, 60)), draw(st.integers(1, 60)), draw(st.sampled_from([1, 3]))
    return data, (left, top, right, bottom), shape, draw(st.booleans())


def expected_shrink(box: Box, shape: tuple[int, int, int]) -> int:
    """The rule in other words: halve while neither side of the box falls below the result's."""
    shrink = 1
    while shrink < 8 and min((box[3] - box[1]) / shape[0], (box[2] - box[0]) / shape[1]) >= 2 * shrink:
        shrink *= 2
    return shrink


@pytest.mark.parametrize("native", PARTS)
@settings(max_examples=400, deadline=None)
@given(drawn=crops())
def test_every_part_gives_what_pillow_gives(native: bool, drawn: tuple[bytes, Box, tuple[int, int, int], bool]) -> None:
    data, box, shape, flip = drawn
    expected = reference(data, box, shape, shrink=expected_shrink(box, shape), flip=flip)
    assert difference(crop(data, box, shape, flip=flip, native=native), expected) <= ROUNDING
    with Image.open(io.BytesIO(data)) as image:
        assert size_of(data, native=native) == (image.height, image.width)


@pytest.mark.parametrize("native", PARTS)
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("shape", [(224, 224, 3), (97, 224, 3), (224, 224, 1), (1, 1, 3)])
def test_photographs_are_near_on_average_too(native: bool, subsampling: str, shape: tuple[int, int, int]) -> None:
    options = {"mode": "L"} if subsampling == "grey" else {"subsampling": subsampling}
    data = encode(picture(375, 500), quality=90, **options)
    for box in [(0, 0, 500, 375), (40, 30, 341, 330), (120.5, 33.25, 260.1, 301.7), (499, 374, 500, 375)]:
        expected = reference(data, box, shape, shrink=expected_shrink(box, shape))
        found = crop(data, box, shape, native=native)
        assert difference(found, expected) <= ROUNDING
        assert np.abs(found.astype(int) - expected).mean() <= 0.3 or shape == (1, 1, 3)


def test_pillow_resizes_where_nothing_else_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    data, box = encode(picture(90, 80)), (3.5, 2.0, 71.0, 88.5)
    by_default = {shape: crop(data, box, shape) for shape in [(30, 20, 3), (100, 60, 1)]}
    monkeypatch.setattr("trainer.data.decode.cykooz_resizer", None)
    for shape, expected in by_default.items():
        assert difference(crop(data, box, shape), expected) <= ROUNDING


@pytest.mark.parametrize("native", PARTS)
@pytest.mark.parametrize("ratio", [1.99, 2, 3.99, 4, 8, 17])
def test_jpegs_are_scaled_as_they_are_decoded(native: bool, ratio: float) -> None:
    """The least pixels that suffice: it would show in the result, which isn't that of the whole image resized."""
    data = encode(picture(400, 400), quality=95)
    side, shape = 20 * ratio, (20, 20, 3)
    box = (11.0, 17.0, 11.0 + side, 17.0 + side)
    shrink = {1.99: 1, 2: 2, 3.99: 2, 4: 4, 8: 8, 17: 8}[ratio]
    assert difference(crop(data, box, shape, native=native), reference(data, box, shape, shrink=shrink)) <= ROUNDING
    # Twice as many one way is not enough.
    narrow = (11.0, 17.0, 11.0 + 21, 17.0 + side)
    assert difference(crop(data, narrow, shape, native=native), reference(data, narrow, shape)) <= ROUNDING


@pytest.mark.parametrize("native", PARTS)
def test_crops_land_in_their_place_of_a_batch(native: bool) -> None:
    data = encode(picture(60, 80))
    batch = np.full((3, 32, 24, 3), 7, dtype=np.uint8)
    decode_crop(memoryview(data), (5, 6, 70, 50), batch[1], native=native)
    assert (batch[[0, 2]] == 7).all()
    assert difference(batch[1], reference(data, (5, 6, 70, 50), (32, 24, 3))) <= ROUNDING
    assert (crop(data, (5, 6, 70, 50), (32, 24, 3), flip=True, native=native) == batch[1][:, ::-1]).all()


def read_only() -> np.ndarray:
    array = np.zeros((8, 8, 3), dtype=np.uint8)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("native", PARTS)
@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros((8, 16, 3), dtype=np.uint8)[:, ::2], "C-contiguous"),
        (np.zeros((3, 8, 8), dtype=np.uint8).transpose(1, 2, 0), "C-contiguous"),
        (read_only(), "writeable"),
        (np.zeros((8, 8), dtype=np.uint8), "accepted"),
        (np.zeros((8, 8, 2), dtype=np.uint8), "accepted"),
        (np.zeros((0, 8, 3), dtype=np.uint8), "accepted"),
        (np.zeros((8, 8, 3), dtype=np.int8), "accepted"),
    ],
)
def test_other_arrays_are_refused(native: bool, out: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_crop(encode(picture(20, 20)), (0, 0, 20, 20), out, native=native)


@pytest.mark.parametrize("native", PARTS)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    "box",
    [(-1, 0, 5, 5), (0, -0.1, 5, 5), (0, 0, 30.5, 5), (0, 0, 5, 21), (5, 5, 5, 9), (6, 5, 5, 9),
     (0, 0, float("nan"), 5), (0, 0, float("inf"), 5)],
)  # fmt: skip
def test_boxes_outside_of_the_image_are_refused(native: bool, form: str, box: Box) -> None:
    with pytest.raises(ValueError, match="30x20"):
        crop(encode(picture(20, 30), form=form), box, (2, 2, 3), native=native)


@pytest.mark.parametrize("native", PARTS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "form"), [("CMYK", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("L", "PNG"), ("P", "PNG"), ("1", "PNG"),
                       ("RGB", "BMP"), ("RGB", "WEBP")]
)  # fmt: skip
def test_other_formats_are_left_to_pillow(native: bool, channels: int, mode: str, form: str) -> None:
    data, box, shape = encode(picture(90, 80), mode=mode, form=form), (3.5, 2.0, 71.0, 88.5), (30, 20, channels)
    shrink = 2 if form == "JPEG" else 1
    expected = reference(data, box, shape, shrink=shrink, flip=True)
    assert difference(crop(data, box, shape, flip=True, native=native), expected) <= ROUNDING
    assert size_of(data, native=native) == (90, 80)


@pytest.mark.parametrize("native", PARTS)
def test_jpegs_of_rgb_are_decoded(native: bool) -> None:
    data = encode(picture(70, 50), keep_rgb=True)
    for channels in (1, 3):
        box, shape = (0, 0, 50, 70), (40, 40, channels)
        assert difference(crop(data, box, shape, native=native), reference(data, box, shape)) <= ROUNDING


@pytest.mark.parametrize("native", PARTS)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no image"),
        (b"not an image", "no image"),
        (bytes(5000), "no image"),
        (encode(picture(90, 80))[:2], "no image"),
        (encode(picture(90, 80))[:300], "(?i)truncated"),
        (encode(picture(90, 80))[:-2], "truncated"),
        (encode(picture(90, 80))[:-400], "truncated"),
        (encode(picture(90, 80), progressive=True)[:-400], "truncated"),
        (encode(picture(90, 80), form="PNG")[:-400], "(?i)truncated|incomplete"),
    ],
)
def test_damaged_files_are_invalid_data(native: bool, data: bytes, message: str) -> None:
    with pytest.raises(InvalidData, match=message) as raised:
        crop(data, (0, 0, 8, 8), (4, 4, 3), native=native)  # the crop itself would be there
    assert "0x" not in str(raised.value)


@pytest.mark.parametrize("native", PARTS)
def test_a_damaged_header_has_no_size(native: bool) -> None:
    with pytest.raises(InvalidData):
        size_of(encode(picture(90, 80))[:40], native=native)


@pytest.mark.parametrize("native", PARTS)
def test_what_libjpeg_only_warns_of_is_decoded_as_pillow_does(native: bool) -> None:
    data = encode(picture(90, 80), restart_marker_blocks=4)
    at = data.index(b"\xff\xd1")  # the second restart marker
    odd = data[:at] + b"\x12\x34\x56" + data[at:]
    box, shape = (10, 10, 50, 80), (30, 30, 3)
    assert difference(crop(odd, box, shape, native=native), reference(odd, box, shape)) <= ROUNDING
    trailing = data + bytes(10)
    assert difference(crop(trailing, box, shape, native=native), reference(data, box, shape)) <= ROUNDING


@pytest.mark.parametrize("native", PARTS)
def test_bombs_are_refused(native: bool) -> None:
    data = bytearray(encode(picture(16, 16)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xfd\xe8\xfd\xe8"
    with pytest.raises(InvalidData, match="bomb"):
        crop(bytes(data), (0, 0, 8, 8), (4, 4, 3), native=native)


@pytest.mark.parametrize("native", PARTS)
def test_threads_give_the_same_bytes(native: bool) -> None:
    files = [encode(picture(150, 200, seed), subsampling="4:2:0", progressive=bool(seed % 2)) for seed in range(8)]
    files[3] = files[3][:-700]  # errors are no one else's

    def one(index: int) -> bytes | str:
        try:
            return crop(files[index % 8], (7.5, 3, 190, 149), (64, 64, 3), flip=index % 3 == 0, native=native).tobytes()
        except InvalidData as error:
            return str(error)

    expected = [one(index) for index in range(24)]
    assert sum(isinstance(result, str) for result in expected) == 3
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, list(range(24)) * 20)) == expected * 20


FUZZ = """
import faulthandler, sys, warnings
import numpy as np
from PIL import Image
from tests.trainer.data.test_decode import encode, picture
from trainer.data.decode import decode_crop, size_of
from trainer.errors import InvalidData

faulthandler.enable()
warnings.simplefilter("ignore")
native, count = sys.argv[1] == "True", int(sys.argv[2])
random = np.random.default_rng(3)
files = [
    encode(picture(61, 83), subsampling="4:2:0"), encode(picture(61, 83), progressive=True),
    encode(picture(61, 83), restart_marker_blocks=3, subsampling="4:2:2"), encode(picture(61, 83), mode="L"),
    encode(picture(61, 83), mode="CMYK"), encode(picture(9, 300), optimize=True),
]
decoded = 0
for number in range(count):
    data = bytearray(files[number % len(files)])
    for _ in range(random.integers(1, 6)):
        if random.random() < 0.5:  # the head is where the harm is
            data[random.integers(0, min(700, len(data)))] = random.integers(0, 256)
        else:
            data[random.integers(0, len(data))] ^= 1 << random.integers(0, 8)
    if random.random() < 0.2:
        data = data[: random.integers(0, len(data))] + b"\\xff\\xd9"
    try:
        height, width = size_of(bytes(data), native=native)
        if height * width > 1_000_000:  # would only take long
            continue
        ends = np.sort(random.random((2, 2)), axis=1) * [[width], [height]]
        box = (ends[0, 0], ends[1, 0], ends[0, 1], ends[1, 1])
        out = np.zeros((*random.integers(1, 40, 2), random.choice([1, 3])), dtype=np.uint8)
        decode_crop(bytes(data), box, out, native=native)
        decoded += 1
    except InvalidData:
        pass
print(decoded)
"""


@pytest.mark.parametrize("native", PARTS)
def test_no_flipped_bytes_crash_the_interpreter(native: bool) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FUZZ, str(native), "4000"], capture_output=True, text=True, timeout=200, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert 400 < int(ran.stdout) < 4000
