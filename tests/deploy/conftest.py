"""Each set of values is rendered once for all tests."""

import functools

import pytest

from tests.deploy import helm
from tests.deploy.helm import Object
from tests.deploy.valuesets import SETS


@functools.cache
def rendered(name: str) -> list[Object]:
    files, values = SETS[name]
    return helm.objects(helm.render(values, *files))


@pytest.fixture(params=SETS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """What the chart makes of one set of values."""
    return rendered(request.param)
