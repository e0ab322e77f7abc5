"""The house: which modules there are, who imports whom, and how long a line or a function may be.

The rules are those of CONTRIBUTING.md. A file that would need to break one stands in the wrong
room.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPTS = {"preprocessing", "train_classification", "test_classification"}
COMMON = {"cli", "files", "machine", "distributed", "versions", "cities", "hub"}
MAY_IMPORT = {
    "common": {"common"},
    "patch_sets": {"common", "patch_sets"},
    "model": {"common", "patch_sets", "model"},
    "training": {"common", "patch_sets", "model", "training"},
    "results": {"common", "patch_sets", "model", "results", "relevance_cam"},
    "report": {"report"},  # and three of the common modules
    "relevance_cam": {"relevance_cam"},
    "data": {"common", "patch_sets", "model"},
}
REPORT_MAY_IMPORT = {"dl_slicer.cli", "dl_slicer.files", "dl_slicer.cities"}
LONGEST_FUNCTION = 60
LONGEST_LINE = 100
MOST_NOQAS = 10


MODULES = sorted(
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.py")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)


def module_name(path):
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


NAMES = {module_name(path) for path in MODULES}


def room(name):
    """The room of a module of ours by its dotted name; "script" for what reads flags."""
    first, *rest = name.split(".")
    if first in SCRIPTS or name == "relevance_cam.__main__":
        return "script"
    if first != "dl_slicer" or not rest:
        return first
    if rest[0] in COMMON:
        return "common"
    # A module at the top of dl_slicer that is no room and not common reads flags.
    return rest[0] if (ROOT / "dl_slicer" / rest[0]).is_dir() else "command"


def parsed(path):
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imports(path):
    """The dotted names of all that a module imports, wherever in it the import stands."""
    package = ".".join(path.parent.parts)
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, base] if base else parts)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in NAMES else base


def ours(path):
    """The modules of this project that a module imports."""
    return {name for name in imports(path) if name in NAMES}


def test_the_root_holds_the_three_scripts_and_no_other_module():
    assert {path.stem for path in MODULES if len(path.parts) == 1} == SCRIPTS


@pytest.mark.parametrize("path", [p for p in MODULES if p.parts[0] != "tests"], ids=str)
def test_a_module_imports_only_from_rooms_that_its_own_may_use(path):
    own = room(module_name(path))
    for name in ours(path):
        other = room(name)
        assert other not in ("script", "command", "tests"), f"{path} imports the script {name}"
        if own == "report":
            assert other == "report" or name in REPORT_MAY_IMPORT, f"{path} imports {name}"
        elif own in MAY_IMPORT:
            assert other in MAY_IMPORT[own] or name == "dl_slicer", f"{path} imports {name}"


def test_the_rule_sees_a_wrong_import(tmp_path, monkeypatch):
    """The test above would notice: an import within a function, and a relative one."""
    fake = ROOT / "dl_slicer" / "patch_sets" / "reading.py"
    text = fake.read_text(encoding="utf-8") + "\n\ndef f():\n    from ..model import networks\n"
    monkeypatch.setattr(sys.modules[__name__], "parsed", lambda path: ast.parse(text))
    assert "dl_slicer.model.networks" in ours(fake.relative_to(ROOT))


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if p.parts[0] == "relevance_cam" and p.name != "__main__.py"],
    ids=str,
)
def test_the_library_needs_torch_torchvision_and_numpy_only(path):
    needed = {name.split(".")[0] for name in imports(path)}
    assert needed <= {*sys.stdlib_module_names, "torch", "torchvision", "numpy", "relevance_cam"}


def modules_after(code):
    """The names of all modules that are there after some code has been run."""
    code += "\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("module", ["preprocessing", "dl_slicer.hub.fetching"])
def test_preprocessing_and_downloads_need_no_torch(module):
    slow = {"torch", "torchvision", "sklearn", "scipy", "matplotlib"}
    assert not slow & modules_after(f"import {module}")


def test_the_library_is_loaded_on_first_use():
    assert "torch" not in modules_after("import relevance_cam")
    assert "torch" in modules_after("import relevance_cam\nrelevance_cam.RelevanceCAM")


def test_no_line_is_longer_than_a_hundred_columns():
    for path in MODULES:
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1):
            assert len(line) <= LONGEST_LINE, f"{path}:{number} has {len(line)} columns"


def test_functions_fit_on_a_screen():
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= LONGEST_FUNCTION, f"{path}: {node.name} has {length} lines"


def test_few_lines_are_excused_from_the_linter():
    excuses = []
    for path in MODULES:
        if path != Path("tests/test_house.py"):
            lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
            excuses += [(path, line) for line in lines if "# noqa" in line]
    assert len(excuses) <= MOST_NOQAS
    for path, line in excuses:
        reason = line.split("# noqa")[1].partition("  ")[2]
        assert reason.strip(" #"), f"{path}: no reason given in {line.strip()}"
