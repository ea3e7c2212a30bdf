#!/bin/sh
# install_torch.sh VENV cpu|cuda VERSION: put PyTorch into VENV, and be sure that it is of this variant.
set -eu
case $2 in
    cpu) requirement="torch==$3+cpu" ;;
    cuda) requirement="torch==$3" ;;
    *) echo "TORCH_VARIANT is '$2'; expected cpu or cuda" >&2 && exit 1 ;;
esac
/opt/pip/bin/pip --python "$1/bin/python" install --no-cache-dir "$requirement"
"$1/bin/python" - "$2" <<'PYTHON'
import sys
import torch

wanted, found = sys.argv[1], "cpu" if torch.version.cuda is None else "cuda"
if found != wanted:
    raise SystemExit(f"torch {torch.__version__} is the {found} build; TORCH_VARIANT is {wanted}")
PYTHON
