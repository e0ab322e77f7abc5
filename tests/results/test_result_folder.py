"""The files of one call replace those of the call before; nobody else's are touched."""

import json

import pytest
from conftest import files

from dl_slicer.cli import InputError
from dl_slicer.results import result_folder
from dl_slicer.results.result_folder import Call, new_results


def call(out, command="test", main_file="metrics.json", **flags):
    return Call(out, command, flags, main_file)


def write(made, *names):
    """A call that writes these files, each with its own name and the command's flags in it."""
    with new_results(made) as new:
        for name in names:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_text(f"{name} {made.flags}")


def contents(out):
    return json.loads((out / "contents.json").read_text())["commands"]


def without_contents(out):
    return {name: text.decode() for name, text in files(out).items() if name != "contents.json"}


def test_files_of_the_call_before_that_are_not_made_again_go(tmp_path):
    out = tmp_path / "out"
    write(call(out, per_city=10), "metrics.json", "a/b/1.jpg", "a/b/2.jpg", "c/3.jpg")
    write(call(out, per_city=3), "metrics.json", "a/b/1.jpg")
    assert without_contents(out) == {
        "metrics.json": "metrics.json {'per_city': 3}",
        "a/b/1.jpg": "a/b/1.jpg {'per_city': 3}",
    }
    assert not (out / "c").exists()
    assert contents(out) == {
        "test": {"flags": {"per_city": 3}, "files": ["a/b/1.jpg", "metrics.json"]}
    }
    assert sorted(path.name for path in out.iterdir()) == ["a", "contents.json", "metrics.json"]


def test_other_commands_and_other_peoples_files_stay(tmp_path):
    write(call(tmp_path), "metrics.json", "a/1.jpg")
    write(call(tmp_path, "saliency", "patches.csv"), "patches.csv", "a/2.jpg")
    (tmp_path / "a" / "holiday.jpg").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    write(call(tmp_path), "metrics.json")
    assert set(without_contents(tmp_path)) == {
        "metrics.json",
        "patches.csv",
        "a/2.jpg",
        "a/holiday.jpg",
        "notes.txt",
    }
    assert set(contents(tmp_path)) == {"test", "saliency"}


def test_a_call_that_fails_leaves_what_was_there(tmp_path):
    write(call(tmp_path), "metrics.json", "a.csv")
    before = files(tmp_path)
    with pytest.raises(KeyboardInterrupt), new_results(call(tmp_path)) as new:
        (new / "metrics.json").write_text("half")
        raise KeyboardInterrupt
    assert files(tmp_path) == before


def test_what_a_killed_call_had_made_goes_with_the_next(tmp_path):
    write(call(tmp_path), "metrics.json", "a.csv")
    before = files(tmp_path)
    (tmp_path / result_folder.UNFINISHED).mkdir()
    (tmp_path / result_folder.UNFINISHED / "b.csv").write_text("half")
    write(call(tmp_path), "metrics.json", "a.csv")
    assert files(tmp_path) == before


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_killed_while_files_take_their_places(tmp_path, monkeypatch, moved):
    """There is no main file, and the next call knows all that lies there to be its own."""
    write(call(tmp_path), "metrics.json", "old.csv", "a.csv")
    move = result_folder._move
    left = [moved]

    def killed(*arguments):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        move(*arguments)

    monkeypatch.setattr(result_folder, "_move", killed)
    with pytest.raises(KeyboardInterrupt):
        write(call(tmp_path, split="val"), "metrics.json", "a.csv", "b.csv", "c/d.csv")
    assert not (tmp_path / "metrics.json").exists()
    assert contents(tmp_path)["test"]["unfinished"]
    monkeypatch.undo()
    write(call(tmp_path), "metrics.json")
    assert set(without_contents(tmp_path)) == {"metrics.json"}
    assert "unfinished" not in contents(tmp_path)["test"]


def test_a_folder_without_a_list(tmp_path, capsys):
    """Files of the names that are written are replaced; all others stay and are counted."""
    (tmp_path / "a").mkdir()
    for name in ("metrics.json", "a/1.jpg", "a/2.jpg", "notes.txt"):
        (tmp_path / name).write_text("old")
    write(call(tmp_path), "metrics.json", "a/1.jpg")
    found = without_contents(tmp_path)
    assert [name for name, text in found.items() if text == "old"] == ["a/2.jpg", "notes.txt"]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert "2 files stay from before" in said[0]
    write(call(tmp_path), "metrics.json")
    assert capsys.readouterr().out == ""
    assert set(without_contents(tmp_path)) == {"metrics.json", "a/2.jpg", "notes.txt"}


def test_somebody_elses_main_file_is_in_the_way_at_once(tmp_path):
    write(call(tmp_path, "saliency", "patches.csv"), "patches.csv")
    (tmp_path / "metrics.json").write_text("mine")
    before = files(tmp_path)
    with (
        pytest.raises(InputError, match=r"metrics\.json: in the way, .* of test; move it"),
        new_results(call(tmp_path)),
    ):
        pytest.fail("the work has begun")
    assert files(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "other command", "folder", "link"])
def test_results_that_cannot_take_their_places_are_kept_beside(tmp_path, kind):
    out = tmp_path / "out"
    write(call(out, "saliency", "patches.csv"), "patches.csv", "theirs.csv")
    name = {"other command": "theirs.csv", "link": "a/1.csv"}.get(kind, "a.csv")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "file":
        (out / "a.csv").write_text("mine")
    if kind == "folder":
        (out / "a.csv").mkdir()
    if kind == "link":
        (out / "a").symlink_to(elsewhere)
    before = files(out)
    for kept in ("new-results", "new-results-2"):
        with pytest.raises(InputError, match=rf"in the way, .* are whole in .*/{kept}$"):
            write(call(out), "metrics.json", name)
        assert set(files(out / kept)) == {"metrics.json", name}
    found = files(out)
    assert {path: found[path] for path in before} == before
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"commands": 3}',
        '{"commands": {"test": {"flags": {}}}}',
        '{"commands": {"test": {"files": ["../other/a.csv"]}}}',
        '{"commands": {"test": {"files": ["a.csv", "/a.csv"]}}}',
        '{"commands": {"test": {"files": [3]}}}',
        '{"commands": {"test": ["files"]}}',
    ],
)
def test_a_list_that_is_none_of_ours(tmp_path, text):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.csv").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "contents.json").write_text(text)
    before = files(tmp_path)
    with pytest.raises(InputError, match=r"contents\.json: damaged, or none of ours"):
        write(call(tmp_path / "out"), "metrics.json")
    assert files(tmp_path) == before


def test_a_folder_that_has_become_a_link_is_not_followed(tmp_path):
    out = tmp_path / "out"
    write(call(out), "metrics.json", "a/1.jpg")
    (out / "a").rename(tmp_path / "moved")
    (out / "a").symlink_to(tmp_path / "moved")
    write(call(out), "metrics.json")
    assert (tmp_path / "moved" / "1.jpg").exists()


def test_two_calls_at_once(tmp_path):
    with (
        new_results(call(tmp_path / "out")) as new,
        pytest.raises(InputError, match="writes into this folder"),
    ):
        (new / "metrics.json").write_text("first")
        write(call(tmp_path / "out"), "metrics.json")
    assert (tmp_path / "out" / "metrics.json").read_text() == "first"
