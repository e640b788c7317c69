# docker build --tag evenflow .      then docker run --rm evenflow, or docker run --rm evenflow make test
FROM python:3.11-slim

# libX11 is what Taichi loads, lavapipe is Vulkan without a GPU, Xvfb a display for tests of windows.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        libvulkan1 libx11-6 make mesa-vulkan-drivers xauth xvfb \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home evenflow \
    && install --directory --owner evenflow /home/evenflow/evenflow
USER evenflow
WORKDIR /home/evenflow/evenflow

# Another index of packages, such as one with torch for the CPU alone: --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL

# What it needs is decided by these files, so that a change elsewhere downloads nothing.
COPY --chown=evenflow Makefile README.md LICENSE constraints.txt pyproject.toml setup.py evenflow.py ./
RUN make install

# Now its own packages are there to be found.
COPY --chown=evenflow . .
RUN touch setup.py && make install

CMD ["make", "demo"]
