"""What cuDNN itself says to our graphs, where its library is installed; it plans for a GPU without having one.

It is not part of the session `kernels`: beside the frontend, it takes ``nvidia-cudnn-cu13`` with ``nvidia-cublas``, of
more than a gigabyte.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

#: What cuDNN's library is linked to of the driver's. Nothing of it is called.
DRIVER = ("GetErrorString", "ModuleGetFunction", "ModuleLoadData", "ModuleUnload", "TensorMapEncodeIm2col")
DRIVER += ("TensorMapEncodeTiled",)


def libraries():
    """The folders of NVIDIA's wheels that hold libraries."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else spec.submodule_search_locations
    return [folder for place in folders for folder in Path(place).glob("*/lib")]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    names = {file.name.split(".")[0] for folder in libraries() for file in folder.iterdir()}
    if missing := {"libcudnn_graph", "libcublasLt"} - names:
        pytest.skip(f"needs {' and '.join(sorted(missing))}, of the wheels nvidia-cudnn-cu13 and nvidia-cublas")
    driver = tmp_path_factory.mktemp("driver")
    text = driver / "driver.cpp"
    text.write_text("".join(f'extern "C" int cu{name}() {{ return 100; }}\n' for name in DRIVER))
    command = ["g++", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", driver / "libcuda.so.1", text]
    subprocess.run(command, check=True)
    here = Path(__file__).parents[1]
    settings = {
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, (*libraries(), driver))),
        "PYTHONPATH": os.pathsep.join((str(here), str(here.parent), *sys.path)),
    }
    command = [sys.executable, "-m", "kernels.planned"]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["found"]


def test_it_has_an_engine_for_everything(answers):
    """One that is exact, deterministic, and content with its share of the workspace."""
    assert len(answers) > 500
    refused = [(task, told) for _, task, told, _ in answers if isinstance(told, str)]
    assert not refused
    assert all(size <= most for _, _, (_, size, most), _ in answers)


def test_the_workspace_is_no_reason_for_another_engine(answers):
    """Of the layers of known networks, each gets the engine that it would get with all memory there is."""
    other = [(task, told, free) for name, task, told, free in answers if name == "layer" and told[0] != free[0]]
    assert not other
