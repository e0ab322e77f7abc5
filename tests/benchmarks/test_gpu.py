"""What a user with a GPU runs, on a CPU as far as it goes: which faults each check would see."""

import json
import subprocess

import numpy as np
import pytest
import torch
from conftest import make_raw

from benchmarks import gpu, gpu_checks, repeats
from benchmarks.gpu_checks import Row, Scene
from dl_slicer.model import devices
from dl_slicer.patch_sets import batching

CPU = torch.device("cpu")


@pytest.fixture
def scene(data, tmp_path):
    sizes = {"arch": "resnet18", "batch": 8, "steps": 2, "warm_up": 1, "rounds": 1}
    return Scene(data, tmp_path, CPU, torch.float32, **sizes)


def verdicts(rows):
    return {row.what: row.ok for row in rows}


def test_all_checks_run_on_a_cpu(data, tmp_path, monkeypatch, capsys):
    """But --compile, which takes minutes there; what repeats are is tested below."""

    def scene(work, device, is_small):
        assert is_small  # a CPU needs no flag for that
        sizes = {"arch": "resnet18", "batch": 4, "steps": 1, "warm_up": 1, "rounds": 1}
        return Scene(data, work, device, torch.float32, **sizes)

    found = {"again": True, "resumed": False, "stopped_at": 3, "steps": 6}
    monkeypatch.setattr(gpu, "make_scene", scene)
    monkeypatch.setattr(repeats, "repeat", lambda *arguments: found)
    with pytest.raises(SystemExit) as end:
        gpu.main(["--device", "cpu", "--json", str(tmp_path / "found.json")])
    assert end.value.code == 1
    result = json.loads((tmp_path / "found.json").read_text())
    (failed,) = result["failed"]
    assert failed.startswith("--deterministic, stopped after step 3 of 6")
    by_name = {row["what"]: row for row in result["rows"]}
    assert by_name["patches are read from"]["figure"] == "files"
    for name in ("relevance-cam", "grad-cam", "grad-cam++", "score-cam"):
        (row,) = [row for what, row in by_name.items() if what.startswith(f"{name}: ")][:1]
        assert row["ok"], row
    share = by_name["evaluation from the patch set: share of the rate on data on the device"]
    assert share["ok"] is None  # of so few steps nothing is said of rates
    assert by_name["--compile"]["figure"].startswith("not run")
    table = capsys.readouterr().out
    assert "\nFAILED --deterministic, stopped" in table
    assert "1 failed: --deterministic, stopped" in table


def test_a_check_that_raises_does_not_stop_the_others(scene, monkeypatch, capsys):
    def broken(scene):
        raise RuntimeError("CUDA error:\nno kernel image")

    checks = {"one": broken, "two": lambda scene: [Row("fine", "1", "1", True)]}
    monkeypatch.setattr(gpu, "CHECKS", checks)
    one, two = gpu.check_all(scene, False, latest=float("inf"))
    assert one == Row("one", "CUDA error: no kernel image", "ends", False)
    assert two.ok
    assert "Traceback" in capsys.readouterr().err
    late = list(gpu.check_all(scene, False, latest=0))
    assert [row.ok for row in late] == [False, False]
    assert "ten minutes" in late[0].figure


def test_other_batches_are_seen(scene, monkeypatch):
    assert all(verdicts(gpu_checks.arrays_in_memory(scene)).values())
    corners = type(scene.patches()).corners

    def shifted(self, indices):
        region, y, x = corners(self, indices)
        return region, y, np.maximum(x - 1, 0)

    monkeypatch.setattr(type(scene.patches()), "corners", shifted)
    assert list(verdicts(gpu_checks.arrays_in_memory(scene)).values()) == [True, False]

    def used_too_early(*arguments, **options):
        found = list(from_files(*arguments, **options))
        for images, _ in found[:-1]:
            images.copy_(found[-1][0])
        yield from found

    from_files = batching._from_files
    monkeypatch.setattr(batching, "_from_files", used_too_early)
    assert list(verdicts(gpu_checks.pinned_batches(scene)).values()) == [False, True]


def test_differences_of_maps_are_by_each_map_s_scale():
    expected = {"layer1": torch.tensor([[[0.0, 10.0]], [[0.0, -0.1]], [[0.0, 0.0]]])}
    found = {"layer1": torch.tensor([[[0.1, 10.0]], [[0.01, -0.1]], [[0.0, 0.0]]])}
    torch.testing.assert_close(
        gpu_checks.differences(found, expected),
        torch.tensor([0.01, 0.1, 0.0], dtype=torch.float64),
    )
    found["layer1"][2] = 1e-9
    found["layer1"][0, 0, 0] = torch.nan
    assert gpu_checks.differences(found, expected)[[0, 2]].isinf().all()


def test_rates_below_their_bound_fail(scene, monkeypatch):
    _, share = gpu_checks._share_rows("training", 89.0, 100.0)
    assert share.ok is False
    _, share = gpu_checks._share_rows("training", 91.0, 100.0)
    assert share.ok is True
    scene.device = torch.device("cuda")
    scene.arch = "resnet50"
    scene.dtype = torch.bfloat16
    for name, rate, steps, expected in (
        ("NVIDIA H100 80GB HBM3", 2600, 200, True),
        ("NVIDIA H200", 2400, 200, False),
        ("NVIDIA H200", 2600, 100, False),
        ("NVIDIA A100", 1300, 200, None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert gpu_checks._bound_of_fast_cards(scene, rate, steps).ok is expected


def test_tf32_is_left_as_it_was():
    before = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    for is_on in (True, False):
        with gpu_checks.tf32(is_on):
            assert torch.backends.cudnn.allow_tf32 is is_on
            assert torch.backends.cuda.matmul.allow_tf32 is is_on
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


def test_repeats_compare_to_the_bit(preprocess, tmp_path, monkeypatch):
    """Three runs of two steps each; determinism is as it was afterwards."""
    monkeypatch.setattr(devices, "_is_fast_at_bfloat16", lambda device: False)  # which is slower
    make_raw(tmp_path / "raw", sites=2)
    found = repeats.repeat(str(preprocess()), tmp_path, "cpu", 15)
    assert found == {"again": True, "resumed": True, "stopped_at": 1, "steps": 2}
    assert not torch.are_deterministic_algorithms_enabled()
    state = torch.load(tmp_path / "whole" / "last.pth", weights_only=True)
    state["model"]["fc.bias"][0] = torch.nextafter(state["model"]["fc.bias"][0], torch.tensor(9.0))
    torch.save(state, tmp_path / "whole" / "last.pth")
    assert repeats.read_bits(tmp_path / "whole") != repeats.read_bits(tmp_path / "again")


def test_one_gpu_is_no_several(scene, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    (row,) = gpu_checks.several_gpus(scene)
    assert row.ok is None
    assert row.figure.startswith("not run")
