# The control plane: API, controller and migrations. No torch, no Ray.
#
#   docker build -f deploy/docker/services.Dockerfile -t resforge/services:0.2.0 .
#
# It runs as user 1000 with a read-only root file system; /tmp must be writable (an emptyDir, a tmpfs).

# Any image with this Python and its venv module. By digest, it is the same image tomorrow.
ARG BASE=docker.io/library/python:3.11.14-slim-bookworm

FROM ${BASE} AS build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md ./
COPY resforge resforge
COPY services services
COPY trainer trainer
RUN python3 -m venv /opt/resforge \
 && /opt/resforge/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[services]" \
 # What only installing needs, and what nobody runs.
 && /opt/resforge/bin/pip uninstall --yes --quiet pip setuptools \
 && find /opt/resforge -name tests -type d -path '*/site-packages/*' -prune -exec rm -rf {} +

FROM ${BASE}
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="resforge-services" \
      org.opencontainers.image.description="Resforge's control plane: API, controller and migrations" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 1000 resforge \
 && useradd --uid 1000 --gid 1000 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin resforge
COPY --from=build /opt/resforge /opt/resforge
ENV PATH=/opt/resforge/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    RESFORGE_HOST=0.0.0.0
WORKDIR /tmp
USER 1000:1000
EXPOSE 8000 9090
# Of the API, which is the default; the controller answers on 9090.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=6 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('RESFORGE_PORT', '8000') + '/healthz', timeout=4)"]
ENTRYPOINT ["python", "-m", "services"]
CMD ["api"]
