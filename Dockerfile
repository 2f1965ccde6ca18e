# The image that the manifests of `gemfleet cluster manifest` name. torch's wheels carry CUDA's libraries, so the nodes need
# NVIDIA's driver and container runtime only. Build and push:
#
#     docker build -t REGISTRY/gemfleet:0.1.0 . && docker push REGISTRY/gemfleet:0.1.0

FROM debian:bookworm-slim

# gcc, g++ and Python's headers: Triton and torch build what compiled layers run; git, git-lfs and ssh: repositories in configurations.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3-venv python3-dev gcc g++ libc6-dev \
        git git-lfs openssh-client procps \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

WORKDIR /opt/gemfleet
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY train train
COPY cluster cluster
COPY launcher launcher
COPY benchmarks benchmarks
RUN TORCH=$(grep '^torch==' constraints.txt) \
    && pip install --no-cache-dir --constraint constraints.txt "$TORCH" '.[gpu]'

# 100: the group that the manifests give to the head's volume.
RUN useradd --create-home --uid 1000 --gid 100 ray
USER 1000
WORKDIR /home/ray
