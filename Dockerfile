# docker build -t volcast .
# docker run -p 127.0.0.1:9464:9464 -v volcast:/var/lib/volcast volcast run --mqtt-url mqtts://broker.example
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
# Commas between them: drift watches the model, demo brings the embedded broker, train weighs two gigabytes.
ARG EXTRAS=drift
WORKDIR /src
RUN python -m venv /opt/volcast
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY stream stream
COPY training training
COPY export export
COPY monitor monitor
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/volcast/bin/pip install --disable-pip-version-check -c constraints.txt ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
# The owner of the data directory has a fixed number: volumes outlive images.
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin volcast \
    && install -d -o volcast -g volcast /var/lib/volcast
COPY --from=build /opt/volcast /opt/volcast
# In a container loopback is nobody's; who may come in is decided where the port is published.
ENV PATH=/opt/volcast/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=1 \
    VOLCAST_DATA_DIR=/var/lib/volcast \
    VOLCAST_HTTP_HOST=0.0.0.0 \
    VOLCAST_HTTP_PORT=9464
USER volcast
# A volcast.toml in the volume is read.
WORKDIR /var/lib/volcast
VOLUME /var/lib/volcast
EXPOSE 9464
# 503 is a pipeline that has not moved for 30 s. A broker or exchange that is away is no illness.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-P", "-m", "stream.commands.health"]
ENTRYPOINT ["volcast"]
CMD ["run"]
