"""Every setting of the control plane. Built from the environment in `__main__`, and handed down from there."""

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """Read from variables that begin with `RESFORGE_`. Keys to object storage come by boto3's own chain instead."""

    model_config = SettingsConfigDict(env_prefix="RESFORGE_", frozen=True)

    database_url: str = Field(description="An SQLAlchemy URL: sqlite:///... or postgresql+psycopg://...")
    s3_bucket: str
    s3_endpoint: str | None = Field(default=None, description="URL of the S3 server; none for AWS.")
    s3_public_endpoint: str | None = Field(default=None, description="URL by which users reach the same server.")
    host: str = "127.0.0.1"
    port: int = 8000
    metrics_port: int = Field(
        default=9090, ge=0, le=65535, description="Where the controller serves /metrics, on `host`; 0: nowhere."
    )
    ray_dashboard: str = Field(default="http://127.0.0.1:8265", description="Where Ray's Jobs REST API answers.")
    ray_token_path: str | None = Field(default=None, description="A file that holds Ray's token, if it wants one.")
    trainer_command: str = Field(
        default="python -m trainer run", description="How a Ray node starts a driver; prefix and attempt follow."
    )
    launcher: Literal["ray_jobs", "kuberay"] = Field(
        default="ray_jobs", description="ray_jobs: a Ray cluster that runs. kuberay: a RayJob for each attempt."
    )
    pools_file: str | None = Field(default=None, description="A YAML file of pools; kuberay needs it.")
    kube_namespace: str | None = Field(default=None, description="Where RayJobs live. Left out: the service's own.")
    kube_api: str | None = Field(
        default=None, description="URL of the Kubernetes API. Left out: the pod's own cluster, else the kubeconfig."
    )
    trainer_image: str | None = Field(default=None, description="The image of Ray's pods; kuberay needs it.")
    ray_service_account: str = Field(default="default", description="The service account of Ray's pods.")
    ray_version: str = Field(default="2.60.0", description="The version of Ray in the trainer image.")
    trainer_env_secret: str | None = Field(
        default=None, description="A secret whose keys become the pods' environment. Left out: workload identity."
    )
    trainer_s3_region: str | None = Field(
        default=None, description="The region of object storage, for the pods. Left out: the cloud's own way."
    )
    tick_s: float = Field(default=0.5, gt=0, description="Seconds between two looks of the controller at its jobs.")
    lease_s: float = Field(default=10.0, gt=0, description="A controller that is silent for so long is replaced.")
    heartbeat_timeout_s: float = Field(default=60.0, gt=0, description="A driver silent for so long is lost.")
    start_timeout_s: float = Field(default=600.0, gt=0, description="From submission to the first sign of life.")
    stop_grace_s: float = Field(default=60.0, gt=0, description="Time for an attempt to stop by itself.")
    max_body_bytes: int = Field(default=1 << 20, gt=0)
    presign_expires_s: int = Field(default=3600, gt=0, le=7 * 24 * 3600)
    data_roots: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Absolute folders on the workers, parted by colons, below which ingests may read. None: S3 alone.",
    )
    log_level: str = "INFO"

    @field_validator("data_roots", mode="before")
    @classmethod
    def _folders(cls, value: object) -> object:
        roots = tuple(filter(None, value.split(":"))) if isinstance(value, str) else value
        for root in roots if isinstance(roots, tuple) else ():
            if not PurePosixPath(root).is_absolute() or ".." in PurePosixPath(root).parts:
                raise ValueError(f"{root!r} is no absolute folder; expected such as /data:/mnt/images")
        return roots

    @model_validator(mode="after")
    def _kuberay_has_what_it_needs(self) -> Self:
        if self.launcher == "kuberay":
            for name in ("pools_file", "trainer_image"):
                if not getattr(self, name):
                    raise ValueError(f"RESFORGE_LAUNCHER=kuberay needs RESFORGE_{name.upper()}")
        return self
