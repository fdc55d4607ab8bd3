"""Importing Lightning without what it would use only if a user plotted metrics or measured speech.

Lightning imports torchmetrics, and that imports matplotlib and `scipy.signal` wherever they are installed: 4 of the 9
seconds of a core that the import of Lightning was measured to take. A worker uses neither.
"""

import importlib
import sys
from importlib.metadata import PackageNotFoundError
from typing import Any

UNUSED = ("matplotlib", "scipy")


def import_lightning() -> None:
    """Import Lightning, unless that is done, as it is where `UNUSED` are not installed; they can be imported after."""
    if "lightning.pytorch" in sys.modules or "torchmetrics" in sys.modules:
        return
    from lightning_utilities.core import imports

    hidden = [name for name in UNUSED if name not in sys.modules]
    version = imports._version

    def visible(name: str) -> Any:
        if name in hidden:
            raise PackageNotFoundError(name)
        return version(name)

    imports._version = visible
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: an import system that finds nothing
    try:
        importlib.import_module("lightning.pytorch")
    finally:
        imports._version = version
        imports.package_available.cache_clear()
        for name in hidden:
            del sys.modules[name]
