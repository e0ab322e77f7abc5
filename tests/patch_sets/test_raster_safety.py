"""What a raster names: nothing outside its folder and --raw is opened, and no network."""

import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import rasterio
from conftest import ROOT
from test_rasters import PLACE, noise, whole, write

from dl_slicer.patch_sets import ground
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.patch_sets.rasters import View, open_raster

INSIDE = 60  # the colour of what may be read
OUTSIDE = 200  # and of what may not

VRT = """<VRTDataset rasterXSize="{size}" rasterYSize="{size}">
  <SRS>EPSG:32611</SRS>
  <GeoTransform>300000, 0.4, 0, 4000000, 0, -0.4</GeoTransform>
  {bands}
</VRTDataset>"""
BAND = """<VRTRasterBand dataType="Byte" band="{band}">
  <SimpleSource>
    <SourceFilename relativeToVRT="{relative}">{name}</SourceFilename>
    <SourceBand>{band}</SourceBand>
    <SrcRect xOff="0" yOff="0" xSize="{size}" ySize="{size}"/>
    <DstRect xOff="0" yOff="0" xSize="{size}" ySize="{size}"/>
  </SimpleSource>
</VRTRasterBand>"""


def vrt(path, name, relative=1, size=300):
    bands = [BAND.format(band=band, relative=relative, name=name, size=size) for band in (1, 2, 3)]
    path.write_text(VRT.format(size=size, bands="\n".join(bands)))
    return path


def plain(path, colour, size=300, **options):
    return write(path, np.full((3, size, size), colour, "uint8"), **options)


@pytest.fixture
def folder(tmp_path):
    """A folder of rasters, and beside it a valid raster of other colours."""
    plain(tmp_path / "outside.tif", OUTSIDE, **PLACE)
    (tmp_path / "raw").mkdir()
    plain(tmp_path / "raw" / "good.tif", INSIDE, **PLACE)
    return tmp_path / "raw"


@pytest.fixture
def server():
    """The port of a server, and the list of requests that it saw."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield httpd.server_port, seen
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def refusal(path, root=None, view=None):
    """What is said of a raster that is refused, whether as it is or at a ground resolution."""
    with pytest.raises(UnreadableImage) as caught, open_raster(path, view, root) as raster:
        raster.read(0, 0, raster.width, raster.height)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_vrt_shows_the_files_beside_it(folder):
    (folder / "tiles").mkdir()
    (folder / "good.tif").rename(folder / "tiles" / "good.tif")
    vrt(folder / "x.vrt", "tiles/good.tif")
    vrt(folder / "nested.vrt", "x.vrt")
    vrt(folder / "absolute.vrt", folder / "tiles" / "good.tif", relative=0)
    for name in ("x.vrt", "nested.vrt", "absolute.vrt"):
        with open_raster(folder / name) as raster:
            assert (raster.crs, raster.transform) == ("EPSG:32611", PLACE["transform"])
            assert (raster.read(10, 10, 200, 200) == INSIDE).all(), name
    pixels = whole(folder / "x.vrt", View(ground_resolution=0.8))
    assert pixels.shape == (150, 150, 3)
    assert (pixels == INSIDE).all()


def test_a_vrt_may_name_what_lies_in_the_folder_of_all_rasters(folder):
    (folder / "site").mkdir()
    path = vrt(folder / "site" / "x.vrt", "../good.tif")
    assert "is not opened" in refusal(path)
    with open_raster(path, root=folder) as raster:
        assert (raster.read(0, 0, 300, 300) == INSIDE).all()


def test_a_vrt_that_names_something_outside_is_refused(folder):
    outside = folder.parent / "outside.tif"
    (folder / "link.tif").symlink_to(outside)
    (folder / "linked").symlink_to(folder.parent)
    vrt(folder / "inner.vrt", "../outside.tif")
    for number, name in enumerate(
        (
            str(outside),
            "../outside.tif",
            "link.tif",
            "linked/outside.tif",
            "inner.vrt",
            f"vrt://{outside}",
            f"/vsizip/{outside}",
            f"/vsisubfile/0_9999999,{outside}",
            f"GTIFF_DIR:1:{outside}",
            f"{folder}/../outside.tif",
            "linked/../outside.tif",
            "&lt;VRTDataset/&gt;",
            "",
        )
    ):
        for relative in (0, 1):
            path = vrt(folder / f"bad{number}.vrt", name, relative)
            for view in (None, View(ground_resolution=0.8)):
                assert "names" in refusal(path, folder, view), name


def test_no_network_is_asked(folder, server):
    port, seen = server
    address = f"http://127.0.0.1:{port}/x.tif"
    for name in (f"/vsicurl/{address}", address, f"/vsicurl?url={address}", f"vrt://{address}"):
        assert "names" in refusal(vrt(folder / "x.vrt", name.replace("&", "&amp;"), 0), folder)
    for name in ("wms.tif", "wms.jpg", "wms.png", "wms.vrt"):
        (folder / name).write_text(
            f'<GDAL_WMS><Service name="TMS"><ServerUrl>{address}</ServerUrl></Service>'
            "<DataWindow><SizeX>9</SizeX><SizeY>9</SizeY></DataWindow></GDAL_WMS>"
        )
        assert "that can be read" in refusal(folder / name, folder)
    named = plain(folder / "named.tif", INSIDE, 600, **PLACE)
    name_overview(named, f"/vsicurl/{address}")
    assert "overview" in refusal(named, folder)
    text = f"<PAMDataset><SRS>{address}</SRS></PAMDataset>"
    (folder / "good.tif.aux.xml").write_text(text)
    assert (whole(folder / "good.tif") == INSIDE).all()
    assert seen == []


def name_overview(path, overview):
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(overview))


def test_metadata_that_name_an_overview_outside(folder):
    outside = plain(folder.parent / "overview.tif", OUTSIDE, 150)
    tagged = plain(folder / "tagged.tif", INSIDE, **PLACE)
    name_overview(tagged, outside)
    assert "overview" in refusal(tagged, folder)
    assert "overview" in refusal(vrt(folder / "x.vrt", "tagged.tif"), folder)
    (folder / "good.tif.aux.xml").write_text(
        f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{outside}</MDI>'
        "</Metadata></PAMDataset>"
    )
    assert colours_of_everything(folder / "good.tif") == {INSIDE}


def colours_of_everything(path):
    """All values that a raster shows in any way."""
    with open_raster(path) as raster:
        size = (raster.width, raster.height)
        shown = [raster.read(0, 0, *size), np.asarray(raster.thumbnail(150))]
        assert raster.data_mask(0, 0, *size).all()
        low, _ = raster.range_of(0, 0, *size)
    return set(np.concatenate([each.ravel() for each in shown]).tolist()) | {round(low)}


def test_links_beside_a_raster_are_not_followed(folder):
    outside = folder.parent
    plain(outside / "overview.tif", OUTSIDE, 150)
    plain(outside / "overview.img", OUTSIDE, 150, driver="HFA")
    mask = write(outside / "mask.tif", np.zeros((1, 300, 300), "uint8"))
    with rasterio.open(mask, "r+") as dataset:
        dataset.update_tags(**{f"INTERNAL_MASK_FLAGS_{band}": 2 for band in (1, 2, 3)})
    (outside / "world.tfw").write_text("9\n0\n0\n-9\n0\n0\n")
    (outside / "aux.xml").write_text(
        "<PAMDataset><GeoTransform>9, 9, 0, 9, 0, -9</GeoTransform><PAMRasterBand><NoDataValue>"
        f"{INSIDE}</NoDataValue></PAMRasterBand></PAMDataset>"
    )
    for name, target in {
        "good.tif.ovr": "overview.tif",
        "good.tif.msk": "mask.tif",
        "good.tif.aux.xml": "aux.xml",
        "good.aux": "overview.img",
        "good.tfw": "world.tfw",
    }.items():
        (folder / name).symlink_to(outside / target)
    assert colours_of_everything(folder / "good.tif") == {INSIDE}
    with open_raster(folder / "good.tif", root=folder) as raster:
        assert raster.transform == PLACE["transform"]


@pytest.mark.parametrize("name", ["x.tif", "x.jpg", "x.png"])
def test_the_content_of_a_file_counts_not_its_name(folder, name):
    vrt(folder / name, "good.tif")
    assert "no JPEG, PNG or TIFF image" in refusal(folder / name)


def test_vrts_that_are_more_than_mosaics_are_refused(folder):
    text = vrt(folder / "x.vrt", "good.tif").read_text()
    source = "<SourceFilename"
    cases = {
        "VRTWarpedDataset": text.replace("<VRTDataset", '<VRTDataset subClass="VRTWarpedDataset"'),
        "VRTDerivedRasterBand": text.replace(
            '<VRTRasterBand dataType="Byte" band="1">',
            '<VRTRasterBand dataType="Byte" band="1" subClass="VRTDerivedRasterBand">'
            "<PixelFunctionLanguage>Python</PixelFunctionLanguage>",
        ),
        "VRTRawRasterBand": text.replace(
            '<VRTRasterBand dataType="Byte" band="1">',
            '<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">'
            "<SourceFilename>/etc/passwd</SourceFilename>",
        ),
        "OpenOptions": text.replace(source, f"<OpenOptions><OOI/></OpenOptions>{source}", 1),
        "KernelFilteredSource": text.replace("SimpleSource", "KernelFilteredSource"),
        "no VRT": text[:-30],
    }
    for said, content in cases.items():
        (folder / "x.vrt").write_text(content)
        assert said in refusal(folder / "x.vrt"), said
    vrt(folder / "x.vrt", "x.vrt")
    assert "more than 4 deep" in refusal(folder / "x.vrt")


def test_a_vrt_whose_source_is_gone_or_damaged_says_which(folder):
    path = vrt(folder / "x.vrt", "good.tif")
    (folder / "good.tif").unlink()
    assert refusal(path).startswith("names good.tif, and there is no such file")
    (folder / "good.tif").write_text("no raster")
    assert refusal(path).startswith("names good.tif: no JPEG, PNG or TIFF")


def test_xml_that_declares_entities_is_one_line(folder):
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c SYSTEM "file:///etc/passwd">]>'
    vrt(folder / "x.vrt", "good.tif")
    (folder / "x.vrt").write_text(bomb + (folder / "x.vrt").read_text())
    assert "declares a type or entities" in refusal(folder / "x.vrt")
    (folder / "good.tif.aux.xml").write_text(bomb + "<PAMDataset/>")
    assert "declares a type or entities" in refusal(folder / "good.tif")


def test_a_coordinate_system_names_no_files(tmp_path, capfd, monkeypatch):
    grid = tmp_path / "grid.gsb"
    monkeypatch.setattr(ground, "CRS", None)  # PROJ would open the grid as soon as it sees it
    system = (
        'GEOGCS["x",DATUM["x",SPHEROID["GRS80",6378137,298.257],EXTENSION["PROJ4_GRIDS",'
        f'"{grid}"]],PRIMEM["G",0],UNIT["degree",0.0174532925199433]]'
    )
    for text in (system, f"+proj=longlat +nadgrids={grid}", str(grid), "http://127.0.0.1/x"):
        assert ground.usable_system(text) is None
    monkeypatch.undo()
    assert ground.usable_system("EPSG:99999", "EPSG:26911").to_epsg() == 26911
    assert capfd.readouterr() == ("", "")


SAY = """
import sys

from dl_slicer.patch_sets.rasters import UnreadableImage, View, open_raster

for path in sys.argv[1:]:
    for view in (View(), View(bands=(1,)), View(ground_resolution=0.8)):
        try:
            with open_raster(path, view) as raster:
                raster.read(0, 0, raster.width, raster.height)
        except UnreadableImage as error:
            print(error)
"""


def test_nothing_of_gdal_reaches_the_screen(folder):
    damaged = write(folder / "x.tif", noise(300, 300), tiled=True, compress="deflate", **PLACE)
    damaged.write_bytes(damaged.read_bytes()[:-100_000])
    odd = folder / "odd.tif"
    odd.write_bytes(b"II*\0\x08\0\0\0\xff\xff" + bytes(90))
    nowhere = plain(folder / "nowhere.tif", INSIDE, crs="EPSG:4326", transform=PLACE["transform"])
    unplaced = plain(folder / "unplaced.tif", INSIDE)
    # libgeotiff has something to say of these keys, and does not say it to GDAL.
    keys = plain(folder / "keys.jp2", INSIDE, driver="JP2OpenJPEG", **PLACE)
    too_long = struct.pack("<HHHH", 1026, 34737, 200, 0)
    right = struct.pack("<HHHH", 1026, 34737, 22, 0)
    assert right in keys.read_bytes()
    keys.write_bytes(keys.read_bytes().replace(right, too_long))
    strips = write(folder / "strips.tif", noise(300, 300), compress="lzw", interleave="pixel")
    strips.write_bytes(strips.read_bytes()[:-100_000])
    paths = map(str, (damaged, odd, nowhere, unplaced, keys, strips))
    run = subprocess.run(
        [sys.executable, "-c", SAY, *paths], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0
    assert run.stderr == ""
    assert len(run.stdout.splitlines()) == 3 + 3 + 1 + 1 + 0 + 3  # of each file
