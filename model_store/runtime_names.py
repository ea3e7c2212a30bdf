"""The names of what can run a network. Imports no network library, so that settings can be read without one."""

from typing import Literal

RuntimeChoice = Literal["auto", "torch-eager", "torch-compiled", "torch-graphs", "openvino"]
