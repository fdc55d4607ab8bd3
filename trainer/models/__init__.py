"""The networks, built from their descriptions in resforge.networks."""

from trainer.models.residual import build

__all__ = ["build"]
