"""Files of a hub: whole whatever the connection does, and one clear line where they cannot come."""

import hashlib
import shutil
import socket
import sys
from types import SimpleNamespace

import pytest
from small_hub import DATASET, REVISION, serving

from dl_slicer.cli import InputError
from dl_slicer.hub import downloads
from dl_slicer.hub.downloads import Repository

FILES = {
    "small.txt": b"a small file, of which git reckons the checksum",
    "empty.txt": b"",
    "a folder/größer.bin": bytes(range(256)) * 100,
    "b/2020.jpg": b"\xff\xd8" + b"0123456789" * 1500,
}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    monkeypatch.delenv("HF_TOKEN", raising=False)


def repository(hub, token=None):
    return Repository("issai/DL-SLICER-dataset", "dataset", hub.url, token)


def download(hub, folder, token=None):
    revision, files = downloads.list_files(repository(hub, token))
    downloads.download(repository(hub, token), revision, files, folder, folder / "parts")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refusal(hub, folder, token=None):
    with pytest.raises(InputError) as error:
        download(hub, folder, token)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_come_as_they_are(tmp_path):
    with serving(FILES) as hub:
        assert download(hub, tmp_path) == FILES


def test_connections_that_break_cost_nothing_that_has_come(tmp_path):
    with serving(FILES) as hub:
        hub.breaks = 9
        assert download(hub, tmp_path) == FILES
        assert hub.breaks == 0
        assert hub.sent == sum(len(content) for content in FILES.values())
        assert sum(wanted != "bytes=0-" for wanted in hub.ranges()) >= 7


def test_a_server_without_ranges_sends_the_whole_file_again(tmp_path):
    with serving(FILES) as hub:
        hub.knows_ranges = False
        hub.breaks = 2
        assert download(hub, tmp_path) == FILES


def test_half_a_file_goes_on_where_it_stopped(tmp_path):
    content = FILES["b/2020.jpg"]
    key = f"b/2020.jpg\nsha256:{hashlib.sha256(content).hexdigest()}"
    part = tmp_path / "parts" / hashlib.sha256(key.encode()).hexdigest()[:32]
    part.parent.mkdir()
    part.write_bytes(content[:1234])
    with serving({"b/2020.jpg": content}) as hub:
        assert download(hub, tmp_path) == {"b/2020.jpg": content}
        assert hub.ranges() == ["bytes=1234-"]


def test_what_is_there_is_not_asked_for_again(tmp_path):
    with serving(FILES) as hub:
        download(hub, tmp_path)
        hub.asked.clear()
        assert download(hub, tmp_path) == FILES
        assert hub.ranges() == []


def test_a_long_list_comes_in_pages(tmp_path):
    files = {f"{number}.txt": b"%d" % number for number in range(95)}
    with serving(files) as hub:
        assert download(hub, tmp_path) == files


def test_bytes_that_changed_on_the_way_are_refused(tmp_path):
    with serving(FILES) as hub:
        revision, files = downloads.list_files(repository(hub))
        changed = bytearray(FILES["b/2020.jpg"])
        changed[777] ^= 1
        hub.files["b/2020.jpg"] = bytes(changed)
        with pytest.raises(InputError, match=r"b/2020\.jpg has not come as the hub describes"):
            downloads.download(repository(hub), revision, files, tmp_path, tmp_path / "parts")
        assert not (tmp_path / "b").exists()
        hub.files = FILES
        assert download(hub, tmp_path) == FILES


def test_a_hub_that_sends_nothing_more_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "WORKERS", 1)
    with serving({"b.bin": FILES["b/2020.jpg"]}) as hub:
        hub.breaks = 10**6
        hub.cut_after = 0
        assert "no connection" in refusal(hub, tmp_path)
        assert len(hub.ranges()) == downloads.TRIES


def test_a_busy_hub_is_asked_again_after_the_time_it_names(tmp_path):
    with serving(FILES) as hub:
        hub.refuses = {"/resolve/": (429, {"Retry-After": "0"})}
        assert "answers with 429" in refusal(hub, tmp_path)
        assert len([path for _, path, _, _ in hub.asked if "small.txt" in path]) <= downloads.TRIES


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "99999"}, downloads.LONGEST_PAUSE),
        ({"RateLimit": '"resolvers";r=0;t=55'}, 55),
        ({"RateLimit": '"resolvers";r=12;t=55'}, 8),
        ({}, 8),
    ],
)
def test_a_pause_is_as_long_as_the_hub_says(monkeypatch, headers, seconds):
    monkeypatch.setattr(downloads, "PAUSE", 1.0)
    error = SimpleNamespace(response=SimpleNamespace(headers=headers))
    assert downloads._pause(error, 4) == seconds
    assert downloads._pause(None, 1) == 1


@pytest.mark.parametrize(
    ("status", "headers", "line"),
    [
        (401, {"X-Error-Code": "GatedRepo"}, "gated (401): accept its terms at this address"),
        (403, {"X-Error-Code": "GatedRepo"}, "gated (403): accept its terms"),
        (403, {}, "gated (403)"),
        (401, {}, "no such repository, or one for which the hub wants a token"),
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            "does not know this token",
        ),
        (404, {"X-Error-Code": "RepoNotFound"}, "no such repository (404)"),
        (404, {}, "no such repository (404)"),
        (501, {}, "the hub answers with 501"),
    ],
)
@pytest.mark.parametrize("where", ["/api/", "/resolve/"])
def test_what_a_hub_refuses_is_said_in_one_line(tmp_path, where, status, headers, line):
    with serving(FILES) as hub:
        hub.refuses = {where: (status, headers)}
        said = refusal(hub, tmp_path, token="hf_secret")
        assert line in said
        assert f"{hub.url}/{DATASET}" in said
        assert "hf_secret" not in said


def test_a_gated_repository_opens_to_a_token(tmp_path):
    with serving(FILES) as hub:
        hub.wants_token = "hf_secret"
        assert "gated (401)" in refusal(hub, tmp_path, token="hf_other")
        assert download(hub, tmp_path, token="hf_secret") == FILES


def test_the_token_goes_to_the_hub_and_no_further(tmp_path):
    with serving(FILES) as other, serving(FILES) as hub:
        hub.elsewhere = other.url
        assert download(hub, tmp_path, token="hf_secret") == FILES
        assert {token for *_, token in hub.asked} == {"Bearer hf_secret"}
        assert {token for *_, token in other.asked} == {None}


def test_no_connection_is_one_line(tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(InputError, match="no connection .*check the network.*--endpoint"):
            downloads.list_files(Repository("a/b", "dataset", url))
    with pytest.raises(InputError, match="no connection"):
        downloads.list_files(Repository("a/b", "dataset", "http://nowhere.invalid"))


@pytest.mark.parametrize("content", [b"<html>sign in</html>", b"[]", b'{"sha": 3}'])
def test_something_else_than_a_hub_is_one_line(tmp_path, content):
    with serving(FILES) as hub:
        hub.page = content
        assert "does not answer like a Hugging Face hub" in refusal(hub, tmp_path)


def test_the_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install -r requirements-optional\.txt"):
        downloads.list_files(Repository("a/b", "dataset", "http://127.0.0.1:9"))


def test_offline_is_said(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE forbids"):
        downloads.list_files(Repository("a/b", "dataset", "http://127.0.0.1:9"))


def test_a_full_disk_is_noticed_before_anything_comes(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=downloads.SPARE + 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with serving(FILES) as hub:
        assert "40.6 kB are to come, the disk has 268.4 MB left" in refusal(hub, tmp_path)
        assert hub.ranges() == []


@pytest.mark.parametrize("path", ["../outside.jpg", "/tmp/outside.jpg", "a/../../b.jpg", "a\n.jpg"])
def test_a_name_that_leads_outside_is_refused(tmp_path, path):
    with serving({path: b"1"}) as hub:
        assert "rename it" in refusal(hub, tmp_path / "in")
    assert list(tmp_path.iterdir()) == []


def test_another_revision_does_not_go_on_with_half_a_file(tmp_path):
    """Half of what a file was before does not become half of what it is now."""
    (tmp_path / "parts").mkdir()
    with serving({"b.bin": b"x" * 5000}) as hub:
        hub.breaks = 10**6
        hub.cut_after = 0
        refusal(hub, tmp_path)
    with serving({"b.bin": b"y" * 5000}) as hub:
        assert download(hub, tmp_path)["b.bin"] == b"y" * 5000
    assert REVISION not in str(tmp_path)
