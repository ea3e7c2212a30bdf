# The service and the bundles that ship, for CPUs (OpenVINO) or CUDA. deploy/build_image.sh builds and tries it;
# docs/deployment.md says how to run it.
#
# BASE_IMAGE     a Debian or Ubuntu with Python 3.11 or later among its packages
# TORCH_VARIANT  cpu or cuda
# TORCH_VERSION  of the build that pip finds; for cpu its name ends in +cpu
# EXTRAS         of this package: what the server can do beyond serving
#
# pip's configuration may come as the secret `pip-config`, a pip.conf.
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*

FROM python AS build
ARG TORCH_VARIANT=cpu
ARG TORCH_VERSION=2.13.0
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && python3 -m venv /opt/pip \
    && python3 -m venv --without-pip /opt/energy-ood
WORKDIR /source
COPY deploy/image/install_torch.sh ./
RUN --mount=type=secret,id=pip-config,target=/etc/pip.conf \
    sh install_torch.sh /opt/energy-ood "$TORCH_VARIANT" "$TORCH_VERSION"
ARG EXTRAS=capture,tracing
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY deploy/image/install_service.sh deploy/image/convert_bundles.py ./
COPY model_store model_store
COPY service service
RUN --mount=type=secret,id=pip-config,target=/etc/pip.conf \
    sh install_service.sh /opt/energy-ood "$TORCH_VARIANT" "$EXTRAS"
RUN /opt/energy-ood/bin/python convert_bundles.py /var/cache/energy-ood "$TORCH_VARIANT"

FROM python
LABEL org.opencontainers.image.title="energy-ood" \
    org.opencontainers.image.description="Image classification that knows when it doesn't know, over HTTP" \
    org.opencontainers.image.licenses="Apache-2.0"
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION" \
    org.opencontainers.image.created="$CREATED"
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin ood
COPY --from=build /opt/energy-ood /opt/energy-ood
COPY --from=build --chown=10001:10001 /var/cache/energy-ood /var/cache/energy-ood
RUN install --directory --owner ood --group ood /var/lib/energy-ood /var/lib/energy-ood-captured
COPY --chmod=755 deploy/image/healthcheck.py /usr/local/bin/ood-healthcheck
ENV PATH=/opt/energy-ood/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    OOD_HOST=0.0.0.0 \
    OOD_PORT=8000 \
    OOD_CACHE_DIR=/var/cache/energy-ood \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["ood-healthcheck"]
ENTRYPOINT ["ood-serve"]
