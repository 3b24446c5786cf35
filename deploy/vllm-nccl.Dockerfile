# The published vLLM image with another NCCL, for hosts on which the one it ships hangs or fails:
#
#   docker build -f deploy/vllm-nccl.Dockerfile --build-arg NCCL_VERSION=2.28.9 -t vllm-nccl:2.28.9 deploy
#
# and in orchestrator.toml, under the model (or for all of them, where the runtime's image is set):
#
#   image = "vllm-nccl:2.28.9"
#
# NCCL_CUDA is the CUDA that the image was built with: cu13, or cu12 for images of CUDA 12
# (docker run --rm --entrypoint pip vllm/vllm-openai:TAG list | grep nccl tells).
ARG VLLM_TAG=v0.32.0
FROM vllm/vllm-openai:${VLLM_TAG}
ARG NCCL_VERSION
ARG NCCL_CUDA=cu12
# --no-deps: torch asks for the version that it was built with, and nothing else may change.
# torch finds the wheel's library by its own path, vLLM by VLLM_NCCL_SO_PATH: both must be this one. The last step
# loads it from there and asks for its version, which needs no GPU; another one ends the build.
RUN test -n "${NCCL_VERSION}" || { echo "say which: --build-arg NCCL_VERSION=2.28.9" >&2; exit 2; }; \
    if command -v uv >/dev/null; then \
        uv pip install --system --break-system-packages --no-cache --no-deps "nvidia-nccl-${NCCL_CUDA}==${NCCL_VERSION}"; \
    else \
        PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir --no-deps "nvidia-nccl-${NCCL_CUDA}==${NCCL_VERSION}"; \
    fi
RUN mkdir -p /opt/nccl && ln -sfn "$(python3 -c "import importlib.metadata as m; \
print(next(f.locate() for f in m.files('nvidia-nccl-${NCCL_CUDA}') if f.name == 'libnccl.so.2'))")" /opt/nccl/libnccl.so.2 \
    && python3 -c "import ctypes; v = ctypes.c_int(); \
ctypes.CDLL('/opt/nccl/libnccl.so.2').ncclGetVersion(ctypes.byref(v)); \
found = f'{v.value // 10000}.{v.value // 100 % 100}.{v.value % 100}'; \
print('NCCL', found); assert '${NCCL_VERSION}'.startswith(found), found"
ENV VLLM_NCCL_SO_PATH=/opt/nccl/libnccl.so.2
