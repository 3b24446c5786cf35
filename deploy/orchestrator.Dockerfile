# The orchestrator as an image, built from the repository's root:
#
#   docker build -f deploy/orchestrator.Dockerfile -t orchestrator:local .
#
# Any Debian-like base with Python 3.11+ does: --build-arg BASE_IMAGE=…
# RUN_UID and RUN_GID: whom it runs as, where folders of the host's are mounted that somebody owns.
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/orchestrator \
    && /opt/orchestrator/bin/pip install --no-cache-dir '.[documents,otel]'

FROM ${BASE_IMAGE}
ARG RUN_UID=10001
ARG RUN_GID=10001
# What is written lives in volumes, which take their owner from these folders. Engines get the weights (to read) and
# their caches as whole volumes, so those lie apart from the data: the key file is nothing for an engine to see.
RUN groupadd --non-unique --gid ${RUN_GID} orchestrator \
    && useradd --non-unique --uid ${RUN_UID} --gid ${RUN_GID} --home-dir /data --no-create-home --shell /usr/sbin/nologin orchestrator \
    && install -d -o ${RUN_UID} -g ${RUN_GID} -m 0750 /data \
    && install -d -o ${RUN_UID} -g ${RUN_GID} -m 0755 /huggingface /engine-caches
COPY --from=build /opt/orchestrator /opt/orchestrator
ENV PATH=/opt/orchestrator/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/huggingface \
    ORCHESTRATOR_SERVER__DATA_DIR=/data \
    ORCHESTRATOR_AUTH__KEYS_FILE=/data/auth.keys.json \
    ORCHESTRATOR_RUNTIME__CACHES_DIR=/engine-caches
# orchestrator.toml is found here by every command.
WORKDIR /etc/orchestrator
USER ${RUN_UID}:${RUN_GID}
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('ORCHESTRATOR_SERVER__PORT', '8000') + '/live', timeout=4)"]
ENTRYPOINT ["orchestrator"]
CMD ["serve"]
