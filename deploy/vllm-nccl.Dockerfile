# The published vLLM image with another NCCL, for hosts on which the one it ships hangs or fails:
#
#   docker build -f deploy/vllm-nccl.Dockerfile --build-arg NCCL_VERSION=2.28.9 -t vllm-nccl:2.28.9 deploy
#
# and in orchestrator.toml, under the model, or under [defaults] for all of them:
#
#   image = "vllm-nccl:2.28.9"
ARG VLLM_TAG=v0.32.0
FROM vllm/vllm-openai:${VLLM_TAG}
ARG NCCL_VERSION
# cu12 or cu13; empty: the one that is in the image, whose place the new one takes.
ARG NCCL_CUDA=
# torch finds the wheel's library by its own path, vLLM by VLLM_NCCL_SO_PATH: both get this one. --no-deps: torch asks
# for the version that it was built with, and nothing else may change. In the end the library is loaded, which needs no
# GPU, and has to say the version that was asked for.
RUN set -eu; \
    test -n "${NCCL_VERSION:-}" || { echo "say which: --build-arg NCCL_VERSION=2.28.9" >&2; exit 2; }; \
    cuda=${NCCL_CUDA:-$(python3 -c "import importlib.metadata as m; \
print(next(d.name[12:] for d in m.distributions() if d.name.startswith('nvidia-nccl-')))")}; \
    wheel="nvidia-nccl-${cuda}==${NCCL_VERSION}"; \
    if command -v uv >/dev/null; then uv pip install --system --break-system-packages --no-cache --no-deps "$wheel"; \
    else PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir --no-deps "$wheel"; fi; \
    mkdir -p /opt/nccl; \
    ln -sfn "$(python3 -c "import importlib.metadata as m; \
print(next(f.locate() for f in m.files('nvidia-nccl-$cuda') if f.name == 'libnccl.so.2'))")" /opt/nccl/libnccl.so.2; \
    python3 -c "import ctypes; v = ctypes.c_int(); \
ctypes.CDLL('/opt/nccl/libnccl.so.2').ncclGetVersion(ctypes.byref(v)); \
found = f'{v.value // 10000}.{v.value // 100 % 100}.{v.value % 100}'; \
print('NCCL', found); assert found == '${NCCL_VERSION}', found"
ENV VLLM_NCCL_SO_PATH=/opt/nccl/libnccl.so.2
