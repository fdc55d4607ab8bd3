"""Which image goes into which shard, under which name. Pure: the same source gives the same plan."""

import hashlib
import json
import random
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from trainer.data.formats import Split
from trainer.errors import InvalidData
from trainer.ingest.source import FOLDERS, Broken, Found, Listing

_SEED = 0
_LONGEST = ".jpeg"  # of the suffixes that members are given


@dataclass(frozen=True, slots=True)
class Placed:
    """An image in a shard. `name` is that of its members, without a suffix."""

    found: Found
    label: int
    name: str


@dataclass(frozen=True)
class ShardPlan:
    """What goes into one tar, in this order."""

    split: Split
    number: int
    images: tuple[Placed, ...]

    @property
    def name(self) -> str:
        """Its key below the manifest's folder."""
        return f"{self.split}/{self.number:06d}.tar"

    def digest(self, options: Mapping[str, object]) -> str:
        """SHA-256 over what goes in and how it is encoded, by which a finished shard is known again."""
        digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
        for image in self.images:
            found = image.found
            digest.update(json.dumps([found.name, found.offset, found.size, image.label, image.name]).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Plan:
    """All of it. `broken` is what could be told before any image was read."""

    classes: tuple[str, ...]
    shards: tuple[ShardPlan, ...]
    broken: tuple[Broken, ...] = ()
    ignored: int = 0


def make_plan(listings: Mapping[Split, Listing], shard_bytes: int, where: str) -> Plan:
    """Shuffle each split's images, so that classes are mixed, and deal them into shards of about `shard_bytes`.

    Raises:
        InvalidData: there are no training images, a class has none, or the splits' classes differ.
    """
    training = listings["train"]
    if not training.classes:
        raise InvalidData(f"{where} holds no images; expected are train/CLASS/IMAGE or train/CLASS.tar")
    classes = tuple(sorted(training.classes))
    if len(classes) < 2:
        raise InvalidData(f"{where} has the class {classes[0]} alone under train/; a data set has two or more")
    shards: list[ShardPlan] = []
    for split in FOLDERS:
        listing = listings.get(split)
        if listing is None or not listing.classes:
            continue
        _check(listing, classes, where)
        shards += _deal(split, _placed(split, listing.images, classes), shard_bytes)
    there = [listing for listing in listings.values() if listing.classes]
    broken = tuple(item for listing in there for item in listing.broken)
    return Plan(classes, tuple(shards), broken, sum(listing.ignored for listing in there))


def _check(listing: Listing, classes: Sequence[str], where: str) -> None:
    # A class is its place among the sorted names, so other names would be other classes.
    if listing.classes != set(classes):
        differ = some(listing.classes ^ set(classes))
        raise InvalidData(f"the classes under {listing.folder}/ and train/ of {where} differ: {differ}")
    if twice := {name for name, _, _ in listing.tars} & {item.class_name for item in listing.images if not item.inner}:
        raise InvalidData(f"{where} has classes both as a folder and as a tar: {some(twice)}; remove one of the two")
    if empty := set(classes) - {item.class_name for item in listing.images}:
        raise InvalidData(f"{where} holds no image of {some(f'{listing.folder}/{name}' for name in empty)}")


def _placed(split: Split, images: Iterable[Found], classes: Sequence[str]) -> list[Placed]:
    """The images by name, each with its label and a name of its own, in which the last part has no dot."""
    number = {name: label for label, name in enumerate(classes)}
    taken: set[str] = set()
    placed = []
    for found in sorted(images, key=lambda item: item.name):
        stem = PurePosixPath(found.inner or found.file).stem.replace(".", "_")
        wanted = _short(f"{split}/{found.class_name}/{stem}", found.name)
        name, again = wanted, 1
        while name in taken:  # such as cat.jpg and cat.png, which would be one sample
            again += 1
            name = _short(f"{wanted}-{again}", f"{found.name}-{again}")
        taken.add(name)
        placed.append(Placed(found, number[found.class_name], name))
    return placed


def _short(name: str, source: str) -> str:
    """The name, or where a tar's header has no room for it, one that is made from the source's."""
    try:
        tarfile.TarInfo(name + _LONGEST).tobuf(tarfile.USTAR_FORMAT)
    except ValueError:
        return f"{name.split('/', 1)[0]}/long/{hashlib.sha256(source.encode()).hexdigest()[:32]}"
    return name


def _deal(split: Split, images: list[Placed], shard_bytes: int) -> list[ShardPlan]:
    """Shards of equal shares of the bytes, each with an image or more."""
    random.Random(_SEED).shuffle(images)
    total = max(1, sum(item.found.size for item in images))
    count = max(1, round(total / shard_bytes))
    shares: dict[int, list[Placed]] = {}
    before = 0
    for item in images:
        shares.setdefault(min(count - 1, before * count // total), []).append(item)
        before += item.found.size
    return [ShardPlan(split, number, tuple(share)) for number, share in enumerate(shares.values())]


def some(names: Iterable[str]) -> str:
    """The first five names, and how many more there are."""
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")
