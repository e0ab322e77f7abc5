"""The library stands alone, and its names are read without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import relevance_cam
from relevance_cam import names

FOLDER = Path(relevance_cam.__file__).parent


def run_python(program):
    return subprocess.run(
        [sys.executable, "-c", program], cwd=FOLDER.parent, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "program",
    [
        "import relevance_cam; dir(relevance_cam)",
        "from relevance_cam.__main__ import read_flags; read_flags(['--checkpoint', 'best.pth'])",
    ],
    ids=["import", "flags"],
)
def test_torch_is_not_imported(program):
    done = run_python(f"{program}\nimport sys\nprint('torch' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_methods_are_loaded_by_their_names():
    assert set(relevance_cam.__all__) <= set(dir(relevance_cam))
    for name, (_, class_name) in names.METHODS.items():
        method = relevance_cam.load_method(name)
        assert method is getattr(relevance_cam, class_name)
        assert method.__name__ == class_name
    with pytest.raises(AttributeError, match="NoSuchCAM"):
        _ = relevance_cam.NoSuchCAM


def test_the_library_imports_nothing_but_torch_and_numpy():
    allowed = {*sys.stdlib_module_names, "numpy", "torch", "torchvision"}
    for file in sorted(FOLDER.glob("*.py")):
        if file.name == "__main__.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                for imported in node.names:
                    assert imported.name.split(".")[0] in allowed, (file.name, imported.name)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.split(".")[0] in allowed, (file.name, node.module)
