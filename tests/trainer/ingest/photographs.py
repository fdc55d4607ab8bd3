"""Small photographs, made by a seed, as class folders and as class tars."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def photograph(seed: int, size: tuple[int, int] = (40, 30), kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """An encoded image of noise, width by height."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind)
    return out.getvalue()


def tree(images: int, classes: int = 2, held_out: int = 0) -> dict[str, bytes]:
    """Files by name: so many images a class to train on, and to hold out."""
    return {
        f"{folder}/class-{number}/image-{index}.jpg": photograph(1000 * number + index + first)
        for folder, count, first in (("train", images, 0), ("val", held_out, 500))
        for number in range(classes)
        for index in range(count)
    }


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def tarred(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same classes as tars, as ImageNet's own inner tars are."""
    tars: dict[str, list[tuple[str, bytes]]] = {}
    for name, data in files.items():
        folder, image = name.rsplit("/", 1)
        tars.setdefault(f"{folder}.tar", []).append((image, data))
    return {name: tar(members) for name, members in tars.items()}


def tar(members: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()
