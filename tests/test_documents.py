"""What the README, docs/ and the files beside them say: commands, links and versions that hold."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "data/*.md", "checkpoints/*.md")
    for path in ROOT.glob(pattern)
)
COMMANDS = (
    "preprocessing.py",
    "train_classification.py",
    "test_classification.py",
    "data/fetch.py",
    "data/make_sample.py",
    "-m relevance_cam",
    "-m dl_slicer.report",
    "-m dl_slicer.compare",
    "-m dl_slicer.reproduce",
    "-m dl_slicer.cross_validation",
)
# Whose flags a command takes besides its own.
HANDED_ON_TO = {"-m dl_slicer.cross_validation": ("preprocessing.py",)}


def commands(text):
    """The command lines in a page's blocks of code, without comments, each on one line."""
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.split(" # ")[0]


def flags_of(command, text):
    """The flags that a text gives to a command, in any of its lines."""
    found = set()
    for line in commands(text):
        before, typed, after = line.partition(command)
        if typed and re.search(r"python |torchrun ", before):
            own = after.partition(" -- ")[0]  # the others are another command's
            found |= set(re.findall(r"(?<!\S)--[a-z][a-z-]*", own))
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_in_the_documents_is_one_of_its_command(command):
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    texts.append("```\n" + (ROOT / "Makefile").read_text(encoding="utf-8") + "```")
    typed = set().union(*(flags_of(command, text) for text in texts))
    known = set()
    for taker in (command, *HANDED_ON_TO.get(command, ())):
        line = [sys.executable, *taker.split(), "--help"]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
        known |= set(re.findall(r"--[a-z][a-z0-9-]*", done.stdout))
    assert typed <= known, f"{command} has no {', '.join(sorted(typed - known))}"


def test_the_flags_are_found():
    text = "```\ntorchrun --standalone \\\n  preprocessing.py --a-b 1 --c  # --d\n```\n--e"
    assert flags_of("preprocessing.py", text) == {"--a-b", "--c"}


def anchor(heading):
    """The anchor that a heading gets on the web."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https:"):
            continue
        file, _, part = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if part:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert part in [anchor(heading) for heading in headings], link


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1300


def found_once(pattern, file):
    (value,) = re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    return value


def test_ruff_has_one_version():
    version = found_once(r'^required-version = "==(.+)"', "pyproject.toml")
    assert found_once(r"^ruff==(\S+)", "requirements-dev.txt") == version
    assert found_once(r"^ +rev: v(\S+)", ".pre-commit-config.yaml") == version


def test_the_newest_release_is_the_one_to_cite():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changes, re.MULTILINE)[1]
    assert found_once(r"^version: (\S+)", "CITATION.cff") == newest
