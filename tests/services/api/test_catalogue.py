"""Recipes, networks and datasets as the API lists them."""

import httpx
import pytest

from resforge.jobs import DatasetInfo
from resforge.recipes import Recipe, all_recipes
from tests.services.api.harness import Api

# He et al. 2015 (tables 1 and 6), torchvision's published weights, and counts by hand: parameters, multiply-adds in
# millions to the digits that are published.
COUNTED = {
    "cifar/resnet-20": (269_722, 40.55),
    "cifar/plain-20": (269_722, 40.55),
    "cifar/resnet-56": (853_018, 125.49),
    "cifar/resnet-110": (1_727_962, 252.89),
    "cifar/resnet-1202": (19_421_274, 2829),
    "imagenet/resnet-18": (11_689_512, 1814),
    "imagenet/resnet-18-A": (11_515_688, None),
    "imagenet/plain-34": (21_623_848, None),
    "imagenet/resnet-34": (21_797_672, 3664),
    "imagenet/resnet-34-C": (22_716_840, None),
    "imagenet/resnet-50": (25_557_032, 3858),
    "imagenet/resnet-50-v1.5": (25_557_032, 4089),
    "imagenet/resnet-101": (44_549_160, 7570),
    "imagenet/resnet-152": (60_192_808, 11_282),
    "imagenet/resnet-152-v1.5": (60_192_808, 11_514),
    "imagenet/resnet-200-v1.5": (64_673_832, 15_007),
    "vgg/vgg-16": (138_357_544, 15_470),
    "vgg/vgg-19-bn": (143_678_248, 19_632),
}


def test_models_are_counted(api: Api) -> None:
    with api.client() as client:
        models = {model.name: model for model in client.models()}
    for name, (parameters, millions) in COUNTED.items():
        model = models[name]
        assert model.parameters == parameters, name
        if millions is not None:
            digits = 2 if millions < 1000 else 0
            assert round(model.macs / 1e6, digits) == pytest.approx(millions, abs=0.5 * 10**-digits), name
        expected = (32, 3, 10) if model.family == "cifar" else (224, 3, 1000)
        assert (model.input.image_size, model.input.channels, model.input.classes) == expected


def test_models_are_all_there_once(http: httpx.Client) -> None:
    models = http.get("/v1/models").json()["items"]
    names = [model["name"] for model in models]
    assert len(set(names)) == len(names)
    described = {(m["family"], m["depth"], m["shortcut"], m["variant"]) for m in models}
    cifar = {("cifar", d, s, "v1") for d in (20, 32, 44, 56, 110, 1202) for s in ("none", "A", "B", "C")}
    basic = {("imagenet", d, s, "v1") for d in (18, 34) for s in ("none", "A", "B", "C")}
    deep = {("imagenet", d, s, v) for d in (50, 101, 152, 200) for s in ("none", "A", "B", "C") for v in ("v1", "v1.5")}
    assert cifar | basic | deep <= described
    followed = {(m["family"], m["depth"], m["block"], m["order"]) for m in models} - {
        (family, depth, "bottleneck" if family == "imagenet" and depth >= 50 else "basic", "post")
        for family, depth, *_ in described
    }
    assert followed == {
        *(("cifar", depth, "bottleneck", order) for depth in (164, 1001) for order in ("post", "pre")),
        *(("cifar", depth, "basic", "pre") for depth in (20, 56, 110)),
        *(("imagenet", depth, "bottleneck", "pre") for depth in (50, 101, 152, 200)),
        *(("vgg", depth, "none", "post") for depth in (11, 13, 16, 19)),
    }
    assert {f"cifar/{name}" for name in ("highway-32", "resnet-110-dropout", "euler-20")} <= set(names)


def test_recipes(http: httpx.Client, api: Api) -> None:
    with api.client() as client:
        assert {recipe.name: recipe for recipe in client.recipes()} == all_recipes()
    for name, recipe in all_recipes().items():
        answer = Recipe.model_validate(http.get(f"/v1/recipes/{name}").json())
        assert answer == recipe


def test_datasets_do_not_tell_where_they_lie(api: Api, http: httpx.Client) -> None:
    dataset = DatasetInfo(
        name="hidden", format="folder", location="s3://private-bucket/prefix", channels=3, classes=2, image_size=64
    )
    api.store.register_dataset(dataset)
    answer = http.get("/v1/datasets")
    assert {"digits", "synthetic", "hidden"} <= {item["name"] for item in answer.json()["items"]}
    job = http.post(
        "/v1/jobs",
        json={
            "model": {"family": "cifar", "depth": 8},
            "data": {"dataset": "hidden"},
            "training": {"global_batch": 4, "epochs": 1},
        },
    )
    assert job.status_code == 202
    refused = http.post("/v1/jobs", json={"recipe": "digits/resnet-20", "data": {"dataset": "nope"}})
    assert "hidden" in refused.text
    read = http.get(job.headers["location"])
    for text in (answer.text, job.text, read.text, refused.text):
        assert "private-bucket" not in text
        assert "location" not in text
    with api.client() as client:
        assert next(item for item in client.datasets() if item.name == "hidden") == dataset.model_copy(
            update={"location": None}
        )
