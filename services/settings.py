"""Every setting of the control plane. Built from the environment in `__main__`, and handed down from there."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


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
    tick_s: float = Field(default=0.5, gt=0, description="Seconds between two looks of the controller at its jobs.")
    lease_s: float = Field(default=10.0, gt=0, description="A controller that is silent for so long is replaced.")
    heartbeat_timeout_s: float = Field(default=60.0, gt=0, description="A driver silent for so long is lost.")
    start_timeout_s: float = Field(default=600.0, gt=0, description="From submission to the first sign of life.")
    stop_grace_s: float = Field(default=60.0, gt=0, description="Time for an attempt to stop by itself.")
    max_body_bytes: int = Field(default=1 << 20, gt=0)
    presign_expires_s: int = Field(default=3600, gt=0, le=7 * 24 * 3600)
    log_level: str = "INFO"
