# What Ray's pods run: head, workers and drivers.
#
#   docker build -f deploy/docker/trainer.Dockerfile -t resforge/trainer:0.2.0 .
#   docker build -f deploy/docker/trainer.Dockerfile -t resforge/trainer:0.2.0-cpu --build-arg DEVICE=cpu .
#
# It runs as user 1000 with a read-only root file system; /tmp (Ray's sessions and logs), /dev/shm and /scratch (cached
# data, compiled steps) must be writable. CUDA comes with torch's own packages, so that the base needs none; the driver
# is the node's.

ARG BASE=docker.io/library/python:3.11.14-slim-bookworm

FROM ${BASE} AS build
# cuda or cpu.
ARG DEVICE=cuda
ARG CPU_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
COPY pyproject.toml constraints.txt README.md ./
# For the native part of decoding.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev libjpeg62-turbo-dev \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/resforge \
 && case "${DEVICE}" in \
      cuda) ;; \
      cpu) /opt/resforge/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps \
             --index-url "${CPU_INDEX}" "$(grep '^torch==' constraints.txt)" ;; \
      *) echo "DEVICE is '${DEVICE}'; accepted are cuda and cpu" >&2; exit 1 ;; \
    esac
COPY resforge resforge
COPY services services
COPY trainer trainer
RUN /opt/resforge/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[trainer,plots]" \
 # What only installing and compiling need. (Ray asks pip for nothing here: jobs carry no runtime environment.)
 && /opt/resforge/bin/pip uninstall --yes --quiet pip \
 && rm -rf /opt/resforge/lib/python3*/site-packages/torch/include /opt/resforge/lib/python3*/site-packages/torch/test \
 && find /opt/resforge -name tests -type d -path '*/site-packages/*' -prune -exec rm -rf {} +

FROM ${BASE}
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="resforge-trainer" \
      org.opencontainers.image.description="Resforge's trainer on Ray: torch, Lightning and Ray" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# KubeRay's probes are made of bash and wget. libjpeg62-turbo: what the native part of decoding is linked with. gcc,
# libc6-dev: Triton, which compiles the step on a GPU, builds what launches its kernels with them; without, steps run
# uncompiled.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends wget libjpeg62-turbo gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 1000 resforge \
 && useradd --uid 1000 --gid 1000 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin resforge \
 && mkdir /scratch && chown 1000:1000 /scratch
COPY --from=build /opt/resforge /opt/resforge
# NVIDIA_*: what CUDA's own images say to the container runtime. RAY_*: no reports to elsewhere, and a token always.
ENV PATH=/opt/resforge/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    RESFORGE_SCRATCH=/scratch \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_AUTH_MODE=token
WORKDIR /tmp
USER 1000:1000
EXPOSE 6379 8265 8080
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s --retries=3 CMD ["ray", "health-check"]
CMD ["ray", "--help"]
