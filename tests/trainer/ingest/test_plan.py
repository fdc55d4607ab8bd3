"""Which image goes where: every one once, under a name of its own, the same each time, and classes mixed."""

import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.formats import Split
from trainer.errors import InvalidData
from trainer.ingest.plan import Plan, make_plan
from trainer.ingest.source import Found, Listing

NAMES = st.text("abcé.-_ 1", min_size=1, max_size=8) | st.text("x.", min_size=90, max_size=230)
IMAGES = st.lists(
    st.tuples(st.sampled_from(["cat", "dog.2", "k" * 120]), NAMES, st.sampled_from([".jpg", ".PNG", ".jpeg"]),
              st.integers(0, 5000)),
    max_size=40,
    unique_by=lambda item: item[:3],
)  # fmt: skip


def listing(images: list[Found], folder: str = "train") -> Listing:
    return Listing(folder, classes={item.class_name for item in images}, images=images)


def found(class_name: str, name: str = "a.jpg", size: int = 100, folder: str = "train") -> Found:
    return Found(class_name, f"{folder}/{class_name}/{name}", size)


def plan(train: list[Found], test: list[Found] | None = None, shard_bytes: int = 4000) -> Plan:
    listings: dict[Split, Listing] = {"train": listing(train)}
    if test is not None:
        listings["test"] = listing(test, "val")
    return make_plan(listings, shard_bytes, "here")


@settings(max_examples=150, deadline=None)
@given(images=IMAGES, shard_bytes=st.integers(1, 20_000), order=st.randoms())
def test_every_image_is_placed_once(images: list[tuple[str, str, str, int]], shard_bytes: int, order: object) -> None:
    seen = [found(kind, name + suffix, size) for kind, name, suffix, size in images]
    seen += [found("cat", "one.jpg"), found("dog.2", "one.jpg")]
    seen = list(dict.fromkeys(seen))
    made = plan(seen, shard_bytes=shard_bytes)
    placed = [image for shard in made.shards for image in shard.images]
    assert sorted(image.found.name for image in placed) == sorted(item.name for item in seen)
    assert all(made.classes[image.label] == image.found.class_name for image in placed)
    assert len({image.name for image in placed}) == len(placed)
    assert all("." not in image.name.rsplit("/", 1)[1] for image in placed)
    for image in placed:
        tarfile.TarInfo(image.name + ".jpeg").tobuf(tarfile.USTAR_FORMAT)  # fits a header
    assert all(shard.images for shard in made.shards)
    assert [shard.number for shard in made.shards] == list(range(len(made.shards)))
    order.shuffle(seen)  # type: ignore[attr-defined]
    assert plan(seen, shard_bytes=shard_bytes) == made


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 1000), min_size=20, max_size=300))
def test_shards_are_of_about_the_size_asked_for(sizes: list[int]) -> None:
    images = [found("ab"[number % 2], f"{number}.jpg", size) for number, size in enumerate(sizes)]
    held = [sum(image.found.size for image in shard.images) for shard in plan(images, shard_bytes=4000).shards]
    assert len(held) == max(1, round(sum(sizes) / 4000))
    assert all(held[0] - 2000 <= size <= held[0] + 2000 for size in held)


def test_classes_are_mixed_and_splits_apart() -> None:
    images = [found(name, f"{number}.jpg") for name in "ab" for number in range(200)]
    held_out = [found(name, f"{number}.jpg", folder="val") for name in "ab" for number in range(20)]
    shards = plan(images, held_out).shards
    assert [(shard.split, shard.name) for shard in shards][-1] == ("test", "test/000000.tar")
    assert {shard.split for shard in shards} == {"train", "test"}
    for shard in shards:
        share = sum(image.label for image in shard.images) / len(shard.images)
        assert 0.2 < share < 0.8
    names = [image.name for shard in shards for image in shard.images]
    assert len(set(names)) == len(names)  # over the splits too


def test_stems_that_meet_get_names_of_their_own() -> None:
    files = ["a.jpg", "a.png", "a-2.jpg", "b.c.jpg", "b_c.jpg"]
    [shard] = plan([found("x", name) for name in files] + [found("y")]).shards
    names = {image.found.file.rsplit("/", 1)[1]: image.name for image in shard.images if image.label == 0}
    assert names == {
        "a.jpg": "train/x/a", "a.png": "train/x/a-2", "a-2.jpg": "train/x/a-2-2",
        "b.c.jpg": "train/x/b_c", "b_c.jpg": "train/x/b_c-2",
    } or names == {
        "a-2.jpg": "train/x/a-2", "a.jpg": "train/x/a", "a.png": "train/x/a-3",
        "b.c.jpg": "train/x/b_c", "b_c.jpg": "train/x/b_c-2",
    }  # fmt: skip


def test_a_digest_tells_other_images_and_other_encodings() -> None:
    one, same, other = (plan([found("a"), found("b", size=size)]).shards[0] for size in (5, 5, 6))
    digests = {one.digest({}), same.digest({}), other.digest({}), one.digest({"quality": 90})}
    assert len(digests) == 3


def test_what_is_no_source_is_refused() -> None:
    with pytest.raises(InvalidData, match=r"here holds no images; expected are train/CLASS/IMAGE or train/CLASS\.tar"):
        plan([])
    with pytest.raises(InvalidData, match="the class a alone"):
        plan([found("a")])
    with pytest.raises(InvalidData, match=r"under val/ and train/ of here differ: b, c"):
        plan([found("a"), found("b")], [found("a", folder="val"), found("c", folder="val")])
    empty = listing([found("a"), found("b")])
    empty.classes.add("c")
    with pytest.raises(InvalidData, match="here holds no image of train/c"):
        make_plan({"train": empty}, 10, "here")
    both = listing([found("a"), found("b")])
    both.tars.append(("a", "train/a.tar", 10))
    with pytest.raises(InvalidData, match="both as a folder and as a tar: a"):
        make_plan({"train": both}, 10, "here")
