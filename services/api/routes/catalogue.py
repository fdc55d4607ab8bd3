"""What there is to train: recipes, networks and datasets."""

from fastapi import APIRouter

from resforge.jobs import DatasetInfo
from resforge.recipes import Recipe, all_recipes, get
from resforge.resources import ModelInfo, Page, RemovedDataset
from services.api.catalogue import models
from services.api.context import Project, Svc
from services.api.ingests import remove

router = APIRouter(prefix="/v1", tags=["catalogue"])


@router.get("/recipes", summary="List the recipes")
def list_recipes(_: Project) -> Page[Recipe]:
    """Complete jobs under a name, most of them with the error that was published for them."""
    return Page(items=tuple(all_recipes().values()))


@router.get("/recipes/{name:path}", summary="Read a recipe")
def get_recipe(_: Project, name: str) -> Recipe:
    return get(name)


@router.get("/models", summary="List the networks")
def list_models(_: Project) -> Page[ModelInfo]:
    """Every network of the paper with its parameters and multiply-adds, counted from its description."""
    return Page(items=models())


@router.get("/datasets", summary="List the datasets", response_model_exclude={"items": {"__all__": {"location"}}})
def list_datasets(project: Project, services: Svc) -> Page[DatasetInfo]:
    """What a job's `data.dataset` may name: the operator's, and what the project has ingested. Where they lie only
    operators see."""
    return Page(items=tuple(services.store.datasets(project)))


@router.delete("/datasets/{name:path}", summary="Remove a data set that the project has ingested, and its objects")
def remove_dataset(project: Project, services: Svc, name: str) -> RemovedDataset:
    """Refused while a job that has not ended works on it, and where another data set lies in the same place.

    Objects are removed below the project's data sets in the service's own bucket. In other buckets they are left where
    they lie. Where object storage fails meanwhile, the data set stays registered, maybe without some of its objects:
    repeat the request. Jobs that have ended keep their records and checkpoints; an evaluation of such a checkpoint that
    names no other data set will fail with `InvalidData`.
    """
    return remove(name, project, services.store, services.objects)
