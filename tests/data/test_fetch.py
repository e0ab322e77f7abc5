"""fetch.py: every layout of a download ends in the same folder, whatever happens on the way."""

import importlib.util
import io
import os
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from conftest import picture
from small_hub import MODELS, REVISION, serving, tarred, zipped

from dl_slicer.cli import InputError
from dl_slicer.hub import archives, downloads, fetching

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "data" / "fetch.py"

spec = importlib.util.spec_from_file_location("fetch", SCRIPT)
fetch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fetch)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    monkeypatch.delenv("HF_TOKEN", raising=False)


def png(seed, size=(150, 110)):
    out = io.BytesIO()
    picture(*size, seed=seed).save(out, "PNG")
    return out.getvalue()


ACCENTED = unicodedata.normalize("NFD", "São Paulo (GRU)")
CITIES = ("Almaty (ALA)", ACCENTED, "Nowhere")
RAW = {
    f"{city}/site{site}/2020.png": png(10 * number + site)
    for number, city in enumerate(CITIES)
    for site in (1, 2)
}
PROCESSED = {
    f"{split}/{city}/2020_half1_{number}.jpg": b"%s %d" % (split.encode(), number)
    for split in ("train", "val", "test", "test_b")
    for city in CITIES
    for number in range(2)
}


def below(folder, files):
    return {f"{folder}/{path}": content for path, content in files.items()}


def of_city(city, files):
    """The files of one city, by their paths in its folder."""
    return {
        path.removeprefix(f"{city}/"): content
        for path, content in files.items()
        if path.startswith(f"{city}/")
    }


def site(number):
    return {path: content for path, content in RAW.items() if f"/site{number}/" in path}


LAYOUTS = {
    "folders": RAW,
    "folders, one level more": below("DL-SLICER/data v2", RAW),
    "raw and processed side by side": below("raw", RAW) | below("processed", PROCESSED),
    "one zip": {"data.zip": zipped(RAW), "README.md": b"hello"},
    "one zip, one level more": {"x/raw.zip": zipped(below("dataset/raw", RAW))},
    "a zip of raw and one of processed": {
        "raw.zip": zipped(below("raw", RAW)),
        "processed.zip": zipped(PROCESSED),
    },
    "one tar.gz of raw and processed": {
        "DL-SLICER.tar.gz": tarred(below("d/raw", RAW) | below("d/processed", PROCESSED), "gz")
    },
    "one tar": {"raw.tar": tarred(below("./raw", RAW))},
    "a zip a city": {f"raw/{city}.zip": zipped(below(city, of_city(city, RAW))) for city in CITIES},
    "a zip a city, sites at its top": {
        f"raw/{city}.zip": zipped(of_city(city, RAW)) for city in CITIES
    },
    "a zip a city in a zip": {
        "raw.zip": zipped({f"raw/{city}.zip": zipped(of_city(city, RAW)) for city in CITIES})
    },
    "a tar.gz in a zip": {"all.zip": zipped({"raw.tar.gz": tarred(below("raw", RAW), "gz")})},
    "cities that go on in the next zip": {
        "raw-001.zip": zipped(below("raw", site(1))),
        "raw-002.zip": zipped(below("raw", site(2) | dict(list(site(1).items())[:1]))),
    },
    "a zip a site": {
        f"raw/{city}/site{number}.zip": zipped(
            {path.removeprefix(f"site{number}/"): content for path, content in files.items()}
        )
        for city in CITIES
        for number in (1, 2)
        for files in [
            {p: c for p, c in of_city(city, RAW).items() if p.startswith(f"site{number}")}
        ]
    },
    "with what programs leave": below("raw", RAW)
    | {"raw/.ipynb_checkpoints/a.png": b"", "raw/__MACOSX/._a.png": b"", ".gitattributes": b"*"},
    "with what macOS packs": {
        "raw.zip": zipped(RAW | {"__MACOSX/Almaty (ALA)/site1/._2020.png": b"", ".DS_Store": b""})
    },
}


def contents(out):
    """All files in a folder, but for those of fetch.py itself."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and fetching.WORK not in path.relative_to(out).parts[:1]
    }


def run(hub, out, *flags, what="raw"):
    fetch.main(["--what", what, "--out", str(out), "--endpoint", hub.url, *flags])


def command(hub, out, *flags):
    return [
        sys.executable,
        str(SCRIPT),
        *("--what", "raw", "--out", str(out), "--endpoint", hub.url),
        *flags,
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_ends_in_the_same_folder(tmp_path, layout):
    with serving(LAYOUTS[layout]) as hub:
        hub.breaks = 2
        run(hub, tmp_path / "raw")
        asked = [path for _, path, _, _ in hub.asked if "/resolve/" in path]
        assert not any("processed" in path or "README" in path for path in asked)
    assert contents(tmp_path / "raw") == RAW
    work = tmp_path / "raw" / fetching.WORK
    assert sorted(p.name for p in work.rglob("*") if p.is_file()) == ["done.json"]


@pytest.mark.parametrize(
    "files",
    [
        PROCESSED,
        below("raw", RAW) | below("processed", PROCESSED),
        {"raw.zip": zipped(RAW), "processed.zip": zipped(below("workspace/v9_240", PROCESSED))},
        {
            f"processed/{split}.zip": zipped(
                {p: c for p, c in PROCESSED.items() if p.startswith(f"{split}/")}
            )
            for split in ("train", "val", "test", "test_b")
        },
        {"all.tar": tarred(below("raw", RAW) | below("processed", PROCESSED))},
    ],
    ids=["folders", "side by side", "two zips", "a zip a split", "one tar"],
)
def test_processed_patches_come_by_split(tmp_path, files, capsys):
    with serving(files) as hub:
        run(hub, tmp_path / "patches", what="processed")
    assert contents(tmp_path / "patches") == PROCESSED
    said = capsys.readouterr().out
    assert "test_b: other than 500 patches: Almaty (ALA) 2" in said
    assert "cannot be read" in said  # the test's are no JPEGs
    assert f"{'train patches':<36}{6:>12}{'about 453000':>12}" in said


@pytest.mark.parametrize(("what", "files"), [("raw", RAW), ("processed", PROCESSED)])
def test_where_names_say_nothing_the_folders_of_splits_do(tmp_path, capsys, what, files):
    both = zipped(below("pictures", RAW) | below("workspace/v9_240", PROCESSED))
    with serving({"raw_and_processed.zip": both}) as hub:
        run(hub, tmp_path / "out", what=what)
    assert contents(tmp_path / "out") == files
    rest = len(RAW) + len(PROCESSED) - len(files)
    assert f"came, but have no place ({rest}): .fetch/unpacked/" in capsys.readouterr().out


def test_preprocessing_reads_what_was_fetched(tmp_path, preprocess):
    with serving(LAYOUTS["one zip"]) as hub:
        run(hub, tmp_path / "raw")
    out = preprocess()
    assert (out / "dataset.json").exists()


def test_a_second_run_asks_and_changes_nothing(tmp_path, capsys):
    with serving(LAYOUTS["a zip a city"]) as hub:
        run(hub, tmp_path / "raw")
        table = capsys.readouterr().out.partition("revision")[2]
        hub.asked.clear()
        before = {path: path.lstat() for path in (tmp_path / "raw").rglob("*")}
        run(hub, tmp_path / "raw")
        assert hub.asked == []
        # The folder itself got its lock and lost it.
        assert {
            path: path.lstat() for path in (tmp_path / "raw").rglob("*")
        }.keys() == before.keys()
        assert all(
            path.lstat().st_mtime_ns == s.st_mtime_ns
            for path, s in before.items()
            if path.is_file()
        )
    said = capsys.readouterr().out
    assert "fetched before" in said
    assert said.partition("revision")[2] == table


def test_a_killed_download_goes_on(tmp_path):
    out = tmp_path / "raw"
    content = zipped(RAW | {"noise/read.bin": os.urandom(200_000)})
    with serving({"raw.zip": content}) as hub:
        hub.pause = 0.004
        for size in (20_000, 60_000):
            process = subprocess.Popen(
                command(hub, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            deadline = time.time() + 60
            while sum(p.stat().st_size for p in out.glob(".fetch/parts/*")) < size:
                assert process.poll() is None, process.communicate()
                assert time.time() < deadline
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        hub.pause = 0
        done = subprocess.run(command(hub, out), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        begins = [int(wanted.removeprefix("bytes=").rstrip("-")) for wanted in hub.ranges()]
    assert begins[0] == 0 and begins[1] >= 20_000 - 8192 and begins[2] >= 60_000 - 8192
    assert ", 6" in done.stdout and "of them before" in done.stdout
    assert contents(out) == RAW
    assert "came, but have no place (1): .fetch/unpacked/raw/noise/read.bin" in done.stdout


class Killed(BaseException):
    pass


STEPS = [(os, "rename"), (os, "replace"), (os, "truncate"), (archives, "_write")]


@pytest.mark.parametrize("layout", ["a zip a city in a zip", "cities that go on in the next zip"])
def test_whatever_step_is_the_last_one_the_next_run_goes_on(tmp_path, monkeypatch, layout):
    """A process that ends before its n-th step that changes something, for each n."""
    calls = 0
    last = None

    def counted(step):
        def call(*arguments):
            nonlocal calls
            calls += 1
            if calls == last:
                raise Killed
            return step(*arguments)

        return call

    for module, name in STEPS:
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    monkeypatch.setattr(downloads, "WORKERS", 1)
    with serving(LAYOUTS[layout]) as hub:
        run(hub, tmp_path / "whole")
        steps = calls
        assert steps > 15
        for last in range(1, steps + 1):
            calls = 0
            out = tmp_path / f"killed at {last}"
            with pytest.raises(Killed):
                run(hub, out)
            run(hub, out)
            assert contents(out) == RAW, last


def test_files_of_others_are_never_touched(tmp_path, capsys):
    out = tmp_path / "raw"
    theirs = {"notes.txt": b"1", "Mine (XYZ)/site1/a.png": b"2"}
    for path, content in theirs.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(content)
    with serving(LAYOUTS["one zip"]) as hub:
        run(hub, out)
    assert contents(out) == RAW | theirs
    assert "not from this download, but in the same folder: Mine (XYZ), notes.txt" in (
        capsys.readouterr().out
    )


def test_what_is_in_the_way_stays_and_nothing_is_moved(tmp_path):
    out = tmp_path / "raw"
    path = out / "Almaty (ALA)" / "site1" / "2020.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"theirs")
    (tmp_path / "elsewhere").mkdir()
    (out / "Nowhere").symlink_to(tmp_path / "elsewhere")
    with serving(LAYOUTS["one zip"]) as hub:
        with pytest.raises(InputError, match=r"already Almaty \(ALA\), Nowhere, .*move it away"):
            run(hub, out)
        assert contents(out) == {"Almaty (ALA)/site1/2020.png": b"theirs"}
        assert list((tmp_path / "elsewhere").iterdir()) == []
        (out / "Almaty (ALA)").rename(tmp_path / "mine")
        (out / "Nowhere").unlink()
        hub.asked.clear()
        run(hub, out)  # what had come is not asked for again
        assert hub.asked == []
    assert contents(out) == RAW


def test_a_folder_of_that_name_that_is_not_ours_is_refused(tmp_path):
    (tmp_path / "a" / ".fetch").mkdir(parents=True)
    (tmp_path / "a" / ".fetch" / "mine").write_text("")
    (tmp_path / "b").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "b" / ".fetch").symlink_to(tmp_path / "empty")
    with serving(RAW) as hub:
        for name in "ab":
            with pytest.raises(InputError, match="not made by this program"):
                run(hub, tmp_path / name)
    assert sorted(path.name for path in (tmp_path / "a").rglob("*")) == [".fetch", "mine"]
    assert list((tmp_path / "empty").iterdir()) == []


def test_raw_and_processed_need_two_folders(tmp_path):
    with serving(LAYOUTS["raw and processed side by side"]) as hub:
        run(hub, tmp_path / "raw")
        with pytest.raises(InputError, match="holds what --what raw fetched; choose another"):
            run(hub, tmp_path / "raw", what="processed")


def test_two_files_of_one_name_that_differ_are_not_chosen_between(tmp_path):
    other = dict.fromkeys(list(site(1))[:1], b"other bytes")
    files = {"raw-001.zip": zipped(site(1)), "raw-002.zip": zipped(site(2) | other)}
    with serving(files) as hub, pytest.raises(InputError, match="with other bytes; move the wrong"):
        run(hub, tmp_path / "raw")
    assert contents(tmp_path / "raw") == {}


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        (
            {"raw.zip": zipped({f"a/b/c{i}/d/1.png": b"" for i in range(3)}), "raw.rar": b"x"},
            ["unpacked/   3 files", "raw/   3 files", "b/   3 files", "preprocessing.py --raw"],
        ),
        ({"data.7z": b"x", "README.md": b"hi"}, ["data.7z", "hf download issai/DL-SLICER"]),
    ],
)
def test_where_no_level_fits_the_tree_and_the_commands_are_shown(tmp_path, files, shown):
    with serving(files) as hub:
        done = subprocess.run(command(hub, tmp_path / "raw"), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for part in (*shown, "mv "):
        assert part in done.stdout
    tree = done.stdout.partition("what there is:\n")[2].partition("look for")[0]
    assert max(len(line) - len(line.lstrip()) for line in tree.splitlines()) <= 16
    assert done.stdout.partition("by hand:\n")[2].count("\n") == 2


def test_a_hostile_archive_is_refused_and_exits_with_2(tmp_path):
    with serving({"raw.zip": zipped(RAW | {"../../../outside.png": b"1"})}) as hub:
        done = subprocess.run(command(hub, tmp_path / "a" / "raw"), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "raw.zip: its member '../../../outside.png'" in done.stderr
    files = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(files) == ["listing.json", "raw.zip"]


def test_a_token_is_used_and_neither_shown_nor_written(tmp_path):
    environment = {**os.environ, "HF_TOKEN": "hf_verysecret"}
    with serving(LAYOUTS["one zip"]) as hub:
        hub.wants_token = "hf_verysecret"
        done = subprocess.run(
            command(hub, tmp_path / "raw", "--token", "hf_wrong"),
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 2 and "gated (401)" in done.stderr
        written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
        assert b"hf_" not in written
        done = subprocess.run(
            command(hub, tmp_path / "raw"), capture_output=True, text=True, env=environment
        )
    assert done.returncode == 0, done.stderr
    assert "hf_" not in done.stdout + done.stderr
    assert contents(tmp_path / "raw") == RAW


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--token", "hf_a b"], "--token: no token"),
        (["--token", "hf_a\nb"], "--token: no token"),
        (["--endpoint", "huggingface.co"], "must begin with https://"),
        (["--what", "patches"], "invalid choice"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, flags, fault):
    with pytest.raises(InputError, match=fault) as error:
        fetch.main(["--what", "raw", "--out", str(tmp_path), *flags])
    assert "hf_a" not in str(error.value) and "\n" not in str(error.value)


def test_what_was_found_is_compared_with_the_paper(tmp_path, capsys):
    files = below("raw", RAW) | {
        "raw/Almaty (ALA)/site3/2020.png": png(1, (96, 48)),
        "raw/Almaty (ALA)/site3/2021.png": b"no picture",
        "raw/Istambul (IST)/only/2019.png": png(2),
    }
    with serving(files) as hub:
        run(hub, tmp_path / "raw")
    said = capsys.readouterr().out
    for what, found, paper in (
        ("cities", 4, 45),
        ("of them in the paper", 3, 45),
        ("rasters", 9, 1585),
        ("of 4800 x 4800 pixels", 0, 1585),
        ("cities with 3 sites", 1, "most"),
    ):
        assert f"{what:<36}{found:>12}{paper!s:>12}" in said
    for line in (
        "- missing are 42 cities: Ankara (ESB), ",
        "- taken for Istanbul (IST): Istambul (IST); the name is kept",
        f"- taken for Sao Paulo (GRU): {ACCENTED}; the name is kept",
        "- not among the paper's cities: Nowhere",
        "- 9 rasters, 1585 in the paper",
        "- sites: Istambul (IST) has 1: only",
        "- sites: Nowhere has 2: site1, site2",
        "- cannot be read (1): Almaty (ALA)/site3/2021.png",
        "- of 96 x 48 pixels (1): Almaty (ALA)/site3/2020.png",
        "- names that repeat within a city: 3 in 3 cities, such as 2020 in Almaty (ALA)",
    ):
        assert f"\n{line}" in said, line


def test_what_has_changed_since_is_said(tmp_path, capsys):
    with serving(RAW) as hub:
        run(hub, tmp_path / "raw")
        (tmp_path / "raw" / "Nowhere" / "site1" / "2020.png").unlink()
        capsys.readouterr()
        run(hub, tmp_path / "raw")
    assert "changed since it was fetched: Nowhere, 1 files" in capsys.readouterr().out


def test_models_are_known_by_their_content(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    from dl_slicer.model import networks

    def saved(content):
        out = io.BytesIO()
        torch.save(content, out)
        return out.getvalue()

    with torch.device("meta"):
        shapes = networks.new_network("resnet18", 45).state_dict()
    state = {key: torch.ones(value.shape, dtype=torch.half) for key, value in shapes.items()}
    best = saved(state)
    files = {
        "models/resnet-18/best.pth": best,
        "models/resnet-50.tar": tarred({"resnet-50/last.pth": saved({"state_dict": state})}),
        "models/vit.pth": saved({"a": torch.zeros(3)}),
        "README.md": b"hello",
    }
    out = tmp_path / "published"
    with serving(files, MODELS) as hub:
        run(hub, out, what="models")
    assert sorted(contents(out)) == ["resnet-18/best.pth", "resnet-50/last.pth"]
    assert contents(out)["resnet-18/best.pth"] == best
    said = capsys.readouterr().out
    assert f"issai/DL-SLICER-models, revision {REVISION}" in said
    for name in contents(out):
        assert f"{name:<40}{'resnet18':<12}{'11,199,597':>12}{45:>9}" in said
    assert "- missing of resnet50: best.pth, last.pth" in said
    assert "missing of resnet18" not in said
    assert "- no network: .fetch/download/models/vit.pth: weights of no ResNet" in said
    assert "- came, but have no place (2): .fetch/download/README.md, " in said


def test_why_a_file_is_no_model_is_said(tmp_path, capsys):
    files = {"models/best.pth": b"PK nothing", "README.md": b"hello"}
    unknown = pytest.raises(InputError, match="no layout that is known")
    with serving(files, MODELS) as hub, unknown:
        run(hub, tmp_path, what="models")
    assert "no network: .fetch/download/models/best.pth: " in capsys.readouterr().out
