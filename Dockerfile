# The operator. The base is a variable, so that a mirror or a digest can take its place.
ARG PYTHON=python:3.11.13-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /build
COPY requirements/operator.txt pyproject.toml README.md ./
RUN python -m venv /opt/tessera && \
    /opt/tessera/bin/pip install --no-cache-dir --require-hashes -r operator.txt
COPY operator/tessera /build/tessera
RUN site="$(/opt/tessera/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" && \
    rm -r tessera/batch_runner tessera/gateway tessera/node_agent && cp -r tessera "$site/tessera" && \
    /opt/tessera/bin/python -m compileall -q "$site/tessera"

FROM ${PYTHON}
ENV PATH=/opt/tessera/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
COPY --from=build /opt/tessera /opt/tessera
USER 65532:65532
EXPOSE 8080 8081 9443
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "tessera.controller.main"]
