"""The RayJob of the example in the documentation: recipe imagenet/resnet-152 on 8 nodes of 8 GPUs.

`python -m tests.services.launchers.example` writes it anew.
"""

from pathlib import Path

import yaml

from resforge import recipes
from resforge.spec import ScalingSpec
from services.launchers.base import LaunchRequest, gang_of
from services.launchers.pools import load_pools
from services.launchers.rayjob import House, rayjob

FOLDER = Path(__file__).parents[3] / "docs" / "examples"
POOLS, RAYJOB = FOLDER / "pools.yaml", FOLDER / "rayjob-resnet-152.yaml"
HEAD = "# Generated from pools.yaml and the recipe imagenet/resnet-152: python -m tests.services.launchers.example\n"


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def example() -> str:
    pool = load_pools(POOLS).pools[0]
    recipe = recipes.get("imagenet/resnet-152").spec
    scaling = ScalingSpec(workers=64, gpus_per_worker=1, cpus_per_worker=11, pool=pool.name)
    spec = type(recipe).model_validate({**recipe.model_dump(), "scaling": scaling.model_dump()})
    job = "job-abcdefgh2345"
    request = LaunchRequest(
        f"{job}-1", f"s3://resforge/vision/{job}", 1, gang=gang_of(spec), pool=pool.name, project="vision"
    )
    house = House(
        namespace="resforge-jobs",
        image="registry.example.com/resforge/trainer:0.3.0",
        service_account="resforge-trainer",
        ray_version="2.60.0",
        trainer_command="python -m trainer run",
        bucket="resforge",
    )
    return HEAD + yaml.dump(rayjob(request, pool, house), Dumper=_Plain, sort_keys=False, width=120)


if __name__ == "__main__":
    RAYJOB.write_text(example())
