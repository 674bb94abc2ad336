# The environment of `make venv`, from the same constraints, with the recipe in /opt/lamer.
# torch of PyPI brings CUDA along and runs on CPUs, too:
#   docker build -t lamer .
#   docker run --gpus all -v "$PWD/exp:/exp" lamer ./run.sh --expdir /exp
# Without CUDA, 4 GB smaller, with the index of torch's CPU builds:
#   docker build -t lamer:cpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm
ARG PYTHON
ARG TORCH_INDEX=
ENV PYTHONDONTWRITEBYTECODE=1 HF_HUB_DISABLE_TELEMETRY=1
WORKDIR /opt/lamer
# What pip needs is copied first: a change of the code installs nothing anew.
COPY setup.cfg pyproject.toml README.md LICENSE NOTICE ./
COPY constraints ./constraints
COPY docs/library.md ./docs/library.md
COPY espnet2_lamer/__init__.py ./espnet2_lamer/__init__.py
RUN PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" pip install --no-cache-dir \
    -c "constraints/python${PYTHON}.txt" -e ".[mini,whisper,train]"
COPY . .
WORKDIR /opt/lamer/egs2/lamer_ssl/ssl1
CMD ["./run.sh", "--help"]
