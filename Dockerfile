# One image for queue managers, channel initiators and the operator. Its entry point is the command line: `qsg serve`, `qsg initiator` …;
# the operator is `python -m qsg_operator`. BASE is any image with Python 3.11 or later and its venv module.
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS build
WORKDIR /src
RUN python3 -m venv /opt/build && python3 -m venv /opt/qsg
COPY requirements/build.lock requirements/operator.lock requirements/
# What builds the wheel stays here; what the operator needs is all that runs.
RUN /opt/build/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/build.lock \
    && /opt/qsg/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/operator.lock
COPY pyproject.toml README.md LICENSE ./
COPY qmgr qmgr
COPY operator operator
RUN /opt/build/bin/pip wheel --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir /wheel . \
    && /opt/qsg/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-index /wheel/*.whl \
    && /opt/qsg/bin/python -m compileall -q /opt/qsg/lib \
    && rm -rf /opt/qsg/lib/python3*/site-packages/pip /opt/qsg/bin/pip*

FROM ${BASE}
COPY --from=build /opt/qsg /opt/qsg
ENV PATH=/opt/qsg/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /
USER 65532:65532
ENTRYPOINT ["qsg"]
