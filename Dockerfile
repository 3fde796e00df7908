# Tersor with all engines of a CPU:
#   docker build -t tersor .
#   docker run --rm -v "$PWD:/work" tersor compress task.py --out build/small
# The container works on /work as your user with: --user "$(id -u):$(id -g)"
FROM python:3.11-slim

# The CPU build of PyTorch is much smaller than the one for GPUs; a layer of its own, as it changes rarely.
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu

WORKDIR /opt/tersor
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir ".[all]" && tersor --version

# No root: a task file is a program.
RUN useradd --create-home --uid 1000 tersor && mkdir /work && chown tersor /work
USER tersor
WORKDIR /work
ENTRYPOINT ["tersor"]
CMD ["--help"]
