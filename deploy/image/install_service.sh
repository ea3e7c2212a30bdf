#!/bin/sh
# install_service.sh VENV cpu|cuda EXTRAS: put the service into VENV, without what only builds, tests or trains.
set -eu
extras=$3
[ "$2" = cuda ] || extras=$extras,cpu
/opt/pip/bin/pip --python "$1/bin/python" install --no-cache-dir ".[$extras]"

cd "$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
rm -rf "$1/bin/ood-train" setuptools setuptools-* pkg_resources _distutils_hack distutils-precedence.pth
rm -rf torch/include torch/share torch/test openvino_telemetry openvino_telemetry-*
find torch/bin -type f ! -name torch_shm_manager -delete
rm -f openvino/libs/libopenvino_intel_gpu_plugin.so openvino/libs/libopenvino_intel_npu_plugin.so openvino/libs/cache.json
