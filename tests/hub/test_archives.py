"""Archives: unpacked into their folder, or refused by name with nothing written anywhere else."""

import io
import random
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import pytest
from small_hub import tarred, zipped

from dl_slicer.cli import InputError
from dl_slicer.hub import archives

FILES = {
    "raw/Almaty (ALA)/site1/2020.jpg": b"\xff\xd8" + bytes(range(256)) * 20,
    "raw/Almaty (ALA)/site 2/2020.jpg": b"another",
    "raw/São Paulo (GRU)/site1/empty.txt": b"",
}


def everything(path):
    return True


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def unpack(content, tmp_path, name="it.zip", wanted=everything):
    archive = tmp_path / name
    archive.write_bytes(content)
    archives.unpack(archive, tmp_path / "inside" / "it", wanted)
    return contents(tmp_path / "inside" / "it")


def refusal(content, tmp_path, name="it.zip"):
    """What is said; whatever was written is gone, and nothing lies outside."""
    before = sorted(tmp_path.parent.iterdir())
    with pytest.raises(InputError) as error:
        unpack(content, tmp_path, name)
    assert "\n" not in str(error.value)
    assert str(tmp_path / name) in str(error.value)
    assert [p for p in tmp_path.rglob("*") if not p.is_dir()] == [tmp_path / name]
    assert sorted(tmp_path.parent.iterdir()) == before
    return str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        zipped(FILES),
        tarred(FILES),
        tarred(FILES, "gz"),
        tarred({f"./{p}": c for p, c in FILES.items()}),
    ],
    ids=["zip", "tar", "tar.gz", "tar with ./"],
)
def test_an_archive_becomes_a_folder(tmp_path, content):
    assert unpack(content, tmp_path) == FILES


def test_what_is_not_wanted_is_left_out(tmp_path):
    def is_raster(path):
        return path.name == "2020.jpg"

    assert len(unpack(tarred(FILES), tmp_path, wanted=is_raster)) == 2


def test_empty_folders_and_folders_named_late(tmp_path):
    folder = tarfile.TarInfo("a")
    folder.type = tarfile.DIRTYPE
    assert unpack(tarred({"a/b.jpg": b"1", folder: b""}), tmp_path) == {"a/b.jpg": b"1"}


def test_names_as_macos_and_windows_write_them(tmp_path):
    name = unicodedata.normalize("NFD", "São Paulo (GRU)")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("XXXX", b"1")
        archive.writestr("a\\site1\\2020.jpg", b"2")
    raw = f"{name}/1.jpg".encode()
    content = out.getvalue().replace(b"XXXX", raw)  # without the mark that says UTF-8
    content = lengthened(content, len(raw) - 4)
    assert unpack(content, tmp_path) == {f"{name}/1.jpg": b"1", "a/site1/2020.jpg": b"2"}


def lengthened(content, more):
    """A zip archive of which the first member's name became longer, with the table mended."""
    content = bytearray(content)
    length = struct.unpack_from("<H", content, 26)[0]
    struct.pack_into("<H", content, 26, length + more)
    table = content.index(b"PK\x01\x02")
    struct.pack_into("<H", content, table + 28, length + more)
    second = content.index(b"PK\x01\x02", table + 4)
    struct.pack_into(
        "<L", content, second + 42, struct.unpack_from("<L", content, second + 42)[0] + more
    )
    end = content.index(b"PK\x05\x06")
    size, start = struct.unpack_from("<LL", content, end + 12)
    struct.pack_into("<LL", content, end + 12, size + more, start + more)
    return bytes(content)


OUTSIDE = [
    "/tmp/outside.jpg",
    "../outside.jpg",
    "a/../../outside.jpg",
    "..\\outside.jpg",
    "C:\\outside.jpg",
    "c:outside.jpg",
    "\\\\server\\outside.jpg",
    "a\n.jpg",
    "a/" * 40 + "deep.jpg",
    "x" * 250 + ".jpg",
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_name_that_leads_outside_is_refused(tmp_path, pack, name):
    said = refusal(pack({"fine.jpg": b"1", name: b"2"}), tmp_path / "")
    assert "its member" in said and "fine" not in said
    assert ("leads out of the folder" in said) == (".." in name)


def made_tar(**attributes):
    info = tarfile.TarInfo("evil")
    for key, value in attributes.items():
        setattr(info, key, value)
    return tarred({"fine.jpg": b"1", info: b""})


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a device"),
        (tarfile.GNUTYPE_SPARSE, "holes"),
    ],
)
def test_links_and_devices_in_a_tar_archive_are_refused(tmp_path, kind, words):
    said = refusal(made_tar(type=kind, linkname="/etc/passwd"), tmp_path, "it.tar")
    assert "'evil'" in said and words in said


@pytest.mark.parametrize(
    ("mode", "words"),
    [(stat.S_IFLNK, "symbolic link"), (stat.S_IFCHR, "device"), (stat.S_IFIFO, "pipe")],
)
def test_links_and_devices_in_a_zip_archive_are_refused(tmp_path, mode, words):
    info = zipfile.ZipInfo("evil")
    info.external_attr = (mode | 0o777) << 16
    said = refusal(zipped({"fine.jpg": b"1", info: b"/etc"}), tmp_path)
    assert "'evil'" in said and words in said


def test_a_link_and_a_file_through_it_write_nothing(tmp_path):
    link = tarfile.TarInfo("link")
    link.type = tarfile.SYMTYPE
    link.linkname = str(tmp_path.parent)
    refusal(tarred({link: b"", "link/outside.jpg": b"1"}), tmp_path)


@pytest.mark.parametrize("packing", ["zip", "gz"])
def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path, packing):
    zeros = {"zeros.jpg": bytes(30_000_000)}
    content = zipped(zeros) if packing == "zip" else tarred(zeros, "gz")
    assert len(content) < 50_000
    assert "over 100 times its own size, as bombs do" in refusal(content, tmp_path)


def test_a_tar_archive_that_lies_about_a_size_is_refused(tmp_path):
    info = tarfile.TarInfo("huge.jpg")
    info.size = 2**40
    header = info.tobuf(tarfile.GNU_FORMAT)
    assert "times its own size" in refusal(header + bytes(2048), tmp_path, "it.tar")


def test_a_name_of_gigabytes_is_not_read(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type = tarfile.GNUTYPE_LONGNAME
    info.size = 2**33
    content = zlib.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_000_000), wbits=31)
    assert "a header of 8.6 GB" in refusal(content, tmp_path, "it.tar.gz")


def test_members_that_share_their_bytes_are_refused(tmp_path):
    """Many names for one compressed member, the way in which the densest bombs are made."""
    content = zipped({"a.jpg": random.Random(0).randbytes(5000)})
    start = content.index(b"PK\x01\x02")
    entry = content[start:-22]
    end = bytearray(content[-22:])
    struct.pack_into("<HHL", end, 8, 9, 9, 9 * len(entry))
    assert "overlap" in refusal(content[:start] + entry * 9 + bytes(end), tmp_path)


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 5)
    files = {f"{number}.jpg": b"1" for number in range(6)}
    for content in (zipped(files), tarred(files)):
        assert "has more than 5 members" in refusal(content, tmp_path)


def test_a_disk_that_is_too_small_is_said(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=archives.SPARE + 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    for content in (zipped(FILES), tarred(FILES, "gz")):
        assert "the disk has 1.0 kB left; make room" in refusal(content, tmp_path)


def test_one_name_twice_is_refused(tmp_path):
    files = {tarfile.TarInfo("a.jpg"): b"1", tarfile.TarInfo("./a.jpg"): b"2"}
    assert "'./a.jpg' is there twice" in refusal(tarred(files), tmp_path)
    files = {"a": b"1", "a/b": b"2"}
    for content in (zipped(files), tarred(files)):
        assert "is there twice" in refusal(content, tmp_path)


def test_an_archive_with_a_password_is_refused(tmp_path):
    content = bytearray(zipped(FILES))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.index(signature)
        content[at + offset] |= 1
    assert "locked with a password" in refusal(bytes(content), tmp_path)


@pytest.mark.parametrize("pack", ["zip", "tar", "gz"])
def test_a_damaged_archive_is_refused(tmp_path, pack):
    files = {"a.jpg": FILES["raw/Almaty (ALA)/site1/2020.jpg"]}
    content = {"zip": zipped(files), "tar": tarred(files), "gz": tarred(files, "gz")}[pack]
    for broken in (content[: len(content) // 3], b"", b"PK", b"\x1f\x8b", b"no archive" * 100):
        assert "damaged, or no zip or tar archive" in refusal(broken, tmp_path) or pack == "tar"
    if pack != "tar":  # which has no checksum of its contents
        flipped = bytearray(content)
        flipped[len(content) // 4] ^= 255
        refusal(bytes(flipped), tmp_path)


def test_what_a_killed_process_left_is_cleared(tmp_path):
    left = tmp_path / "inside" / ".it"
    left.mkdir(parents=True)
    (left / "half.jpg").write_bytes(b"1")
    assert unpack(zipped(FILES), tmp_path) == FILES
    assert [path.name for path in (tmp_path / "inside").iterdir()] == ["it"]


def test_what_an_archive_is_its_name_says_and_how_it_is_packed_its_content(tmp_path):
    assert archives.stem("Almaty (ALA).tar.gz") == "Almaty (ALA)"
    assert archives.stem("raw.ZIP") == "raw"
    assert archives.stem("best.pth") is archives.stem(".zip") is None
    assert unpack(zipped(FILES), tmp_path, "really a zip.tar") == FILES


def test_two_archives_get_no_folder_in_common():
    paths = [PurePosixPath(name) for name in ("a/raw.zip", "a/raw.tar", "raw.zip", "a.jpg")]
    folders = archives.folders_for(paths)
    assert {str(path): str(folder) for path, folder in folders.items()} == {
        "a/raw.zip": "a/raw.zip",
        "a/raw.tar": "a/raw.tar",
        "raw.zip": "raw",
    }
    assert Path("x") / folders[paths[2]] == Path("x/raw")
