"""Resforge: distributed training of deep residual networks as a service.

This package is what both sides share and what a user imports: the job's specification, the state machines, the
networks as data, the recipes, the layout of object storage and the client. It needs neither torch nor FastAPI.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resforge.client import Client
    from resforge.spec import TrainSpec

__version__ = "0.2.0"
__all__ = ["Client", "TrainSpec", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported on demand, so that `import resforge` and `resforge --help` stay quick.
    if name == "Client":
        from resforge.client import Client

        return Client
    if name == "TrainSpec":
        from resforge.spec import TrainSpec

        return TrainSpec
    raise AttributeError(f"module 'resforge' has no attribute {name!r}")
