"""Probes: features kept in files, the fit of the last layer, and what --probe leaves behind."""

import os
import shutil
import signal
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import SIZES, as_flags, files, signal_handlers_kept
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from training_runs import assert_same, load

import preprocessing
import test_classification
import train_classification
from dl_slicer.cli import InputError
from dl_slicer.model import checkpoints, evaluation
from dl_slicer.patch_sets import on_disk, reading
from dl_slicer.training import features, logistic, probes


def flags(data, out, *more):
    return [
        *("--data", str(data), "--out", str(out), "--arch", "resnet18", "--weights", "none"),
        *("--probe", "--features", str(out.parent / "features"), *more),
    ]


@pytest.fixture(scope="module")
def probe(data, tmp_path_factory):
    """A finished probe; its features lie beside it."""
    out = tmp_path_factory.mktemp("probes") / "run"
    with signal_handlers_kept():
        train_classification.main(flags(data, out))
    return out


# --------------------------------------------------------------------------------------- the fit


def overlapping_classes(patches=600, width=24, classes=5):
    """Float16 features of correlated columns, one of them constant, and unequal classes."""
    rng = np.random.default_rng(0)
    labels = rng.choice(classes, patches, p=np.array([5, 4, 3, 2, 1]) / 15)
    means = rng.normal(0, 0.6, (classes, width))
    mixed = (rng.normal(size=(patches, width)) + means[labels]) @ rng.normal(size=(width, width))
    mixed[:, 3] = 0.7
    return torch.from_numpy(mixed).half(), torch.from_numpy(labels)


def fit(found, labels, penalties, weights):
    def blocks():
        yield found[:250], slice(0, 250)
        yield found[250:], slice(250, len(found))

    axes = logistic.find_axes(blocks, *logistic.mean_and_scale(blocks))
    targets = logistic.Targets(labels, weights, torch.tensor(penalties).double())
    starts = torch.zeros(len(penalties), found.shape[1] + 1, 5, dtype=torch.float64)
    points = logistic.fit(blocks, targets, axes, starts, tolerance=1e-9)
    return logistic.on_features(points, axes)


def test_probabilities_are_those_of_scikit_learn():
    """Of several penalties and choices of patches that are fitted in the same passes."""
    found, labels = overlapping_classes()
    taken = [torch.ones(len(labels)).bool(), torch.arange(len(labels)) % 3 > 0]
    weights = torch.stack([probes.equal_classes(labels, each) for each in taken], 1)
    penalties = [1e-3, 1e-2, 1e-3, 1e-2]
    layers, biases = fit(found, labels, penalties, weights)
    standardised = StandardScaler().fit_transform(found.double())
    for number, penalty in enumerate(penalties):
        chosen = taken[number // 2]
        theirs = LogisticRegression(
            C=1 / (penalty * int(chosen.sum())), class_weight="balanced", tol=1e-5, max_iter=2000
        ).fit(standardised[chosen], labels[chosen])
        ours = (found.double() @ layers[number] + biases[number]).softmax(1)
        difference = np.abs(ours.numpy() - theirs.predict_proba(standardised))
        assert difference.max() < 1e-3


def test_the_penalty_is_chosen_by_what_holds_at_other_sites():
    """Columns that tell a site instead of a city make a small penalty the wrong one."""
    rng = np.random.default_rng(0)
    labels = torch.arange(240) % 3
    sites = torch.arange(240) // 3 % 2
    signs = rng.normal(size=(3, 2, 40))  # of each city and site
    helpful = np.eye(3)[labels] + rng.normal(0, 1, (240, 3))
    misleading = signs[labels, sites] + rng.normal(0, 0.2, (240, 40))
    found = torch.from_numpy(np.hstack([helpful, misleading])).half()

    def blocks():
        yield found, slice(0, 240)

    axes = logistic.find_axes(blocks, *logistic.mean_and_scale(blocks))
    chosen = []
    for choice in (sites, torch.arange(240) // 6 % 2):  # whole sites, patches of every site
        left_out = probes.LeftOut(choice, 2, "sites")
        starts = torch.zeros(2, 7, 44, 3, dtype=torch.float64)
        penalties, points = probes.choose_penalty(
            blocks, labels, left_out, axes, starts, lambda: False
        )
        assert penalties.losses[penalties.penalties.index(penalties.penalty)] == min(
            penalties.losses
        )
        assert points.shape == (2, 7, 44, 3)
        chosen.append(penalties.penalty)
    assert chosen[0] > chosen[1]


def test_a_stop_ends_the_fit():
    found, labels = overlapping_classes()
    targets = logistic.Targets(labels, torch.ones(600, 1) / 600, torch.ones(1).double())
    axes = logistic.Axes(torch.zeros(24), torch.ones(24), torch.eye(24), torch.ones(24))
    axes = logistic.Axes(*(each.double() for each in axes))
    start = torch.zeros(1, 25, 5, dtype=torch.float64)
    blocks = [(found, slice(0, 600))]
    assert logistic.fit(lambda: blocks, targets, axes, start, 1e-9, stop=lambda: True) is None


# ------------------------------------------------------------------------------------ left out


class Patches(Namespace):
    def __len__(self):
        return len(self.labels)


def fake_set(names, labels):
    """A set whose patches, two an array, are called (site, raster)."""
    arrays = range(len(names))
    return Patches(
        labels=np.repeat(np.array(labels, np.uint8), 2),
        parts=lambda: [on_disk.Part(range(2 * i, 2 * i + 2), ["an array"], "") for i in arrays],
        site=lambda index: names[index // 2][0],
        raster=lambda index: names[index // 2][1],
        name=lambda index: f"{names[index // 2][1]}/r00_c0{index % 2}",
    )


def test_whole_sites_are_left_out_and_rasters_where_a_city_has_one_site():
    names = [("s", "A/s/1"), ("s", "A/s/2"), ("t", "A/t/1"), ("u", "B/u/1"), ("u", "B/u/2")]
    names += [("v", "C/v/1")]
    left_out = probes.leave_out(fake_set(names, [0, 0, 0, 1, 1, 2]))
    # The one raster of C is never left out: nothing else says how C looks.
    assert left_out.choice.tolist()[::2] == [0, 0, 1, 0, 1, -1]
    assert left_out.choice.tolist()[1::2] == left_out.choice.tolist()[::2]
    assert (left_out.choices, left_out.units) == (2, "sites and rasters")


def test_classes_weigh_the_same_whatever_is_taken():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    weights = probes.equal_classes(labels, torch.tensor([1, 1, 0, 1, 1, 1]).bool())
    assert weights.tolist() == pytest.approx([1 / 6, 1 / 6, 0, 1 / 3, 1 / 6, 1 / 6])


def test_of_each_class_as_many_patches_choose_the_penalty_from_its_first_to_its_last():
    labels = torch.tensor([0] * 100 + [1] * 10 + [2] * 3)
    rows = probes.choose_rows(labels, most=15)
    assert torch.bincount(labels[rows]).tolist() == [5, 5, 3]
    assert rows.tolist() == [0, 20, 40, 60, 80, 100, 102, 104, 106, 108, 110, 111, 112]


def test_jpegs_say_their_site_and_raster_by_their_names(tmp_path):
    names = {
        # Ours, site and raster; the published scripts', the raster alone.
        "A": ("s__2020_r00_c00", "s__2020_r00_c01", "t__2020_r00_c00"),
        "B": ("one_0", "one_1", "two_half_0"),
        "C": ("u__at_2020_r00_c00", "u__at_2021_r00_c00", "u__at_2021_r00_c01"),
    }
    for city, stems in names.items():
        (tmp_path / "train" / city).mkdir(parents=True)
        for stem in stems:
            Image.new("RGB", (8, 8)).save(tmp_path / "train" / city / f"{stem}.jpg")
    train = reading.open_split(tmp_path, "train", 8)
    left_out = probes.leave_out(train)
    assert left_out.choice.tolist() == [0, 0, 1, 0, 0, 1, 0, 1, 1]
    assert left_out.units == "sites and rasters"
    assert [part.patches for part in train.parts()] == [range(0, 3), range(3, 6), range(6, 9)]
    assert [path.parent.name for part in train.parts() for path in part.files] == [*"AAABBBCCC"]


def fit_made_up_patches(tmp_path, names, labels):
    """The last layer fitted to two patches an array."""
    rng = np.random.default_rng(0)
    train = fake_set(names, labels)
    train.classes = ["A", "B"]
    sources = [
        features.Source(part.patches, tmp_path / f"{part.patches.start}.npy")
        for part in train.parts()
    ]
    for source in sources:
        np.save(source.file, rng.normal(size=(2, 5)).astype(np.float16))
    run = Namespace(model=Namespace(fc=torch.nn.Linear(5, 2)))
    found = probes.fit_last_layer(run, train, sources, lambda: False)
    return found, run.model.fc.weight.detach()


def test_where_nothing_can_be_left_out_the_middle_penalty_is_taken(tmp_path):
    found, _ = fit_made_up_patches(tmp_path, [("s", "A/s/1"), ("t", "B/t/1")], [0, 1])
    assert found.penalty == probes.PENALTIES[3]
    assert "none could be chosen" in probes.describe(found)


def test_patches_to_begin_with_change_neither_penalty_nor_fit(tmp_path, monkeypatch):
    names = [(f"s{i}", f"{city}/s{i}/1") for city in "AB" for i in range(10)]
    found, weights = fit_made_up_patches(tmp_path, names, [0] * 10 + [1] * 10)
    monkeypatch.setattr(probes, "PATCHES_TO_BEGIN", 12)
    again, other = fit_made_up_patches(tmp_path, names, [0] * 10 + [1] * 10)
    assert again.patches == found.patches == 40
    assert again.penalty == found.penalty
    assert torch.allclose(weights, other, atol=1e-3)


# -------------------------------------------------------------------------------- whole probes


def test_a_probe_leaves_a_checkpoint_like_any_other(data, finished, probe, tmp_path):
    last = load(probe / "last.pth")
    assert set(last) == set(load(finished / "last.pth"))
    assert (last["epoch"], last["step"], len(last["metrics"]["history"])) == (1, 0, 1)
    args = last["args"]
    assert (args["probe"], args["flips"], args["turns"], args["light"]) == (True, False, False, 0)
    assert args["fit"]["left_out"] == "sites"
    assert args["fit"]["penalty"] in args["fit"]["penalties"]
    assert {path.name for path in finished.iterdir()} == {path.name for path in probe.iterdir()}
    test_classification.main(
        as_flags({"--checkpoint": probe / "best.pth", "--data": data, "--out": tmp_path})
    )
    assert "probe: the last layer alone" in (tmp_path / "report.html").read_text()


def test_only_the_last_layer_is_fitted_and_what_the_log_says_of_it_is_true(data, probe):
    model, checkpoint = checkpoints.load_checkpoint(probe / "best.pth")
    torch.manual_seed(0)
    before = checkpoints.initial_network("resnet18", 3).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith("fc.")
    history = checkpoint.metrics["history"][0]
    dtype = getattr(torch, checkpoint.args["dtype"])
    setup = evaluation.Setup(torch.device("cpu"), dtype)
    val = evaluation.score(model, reading.open_split(data, "val"), setup)
    assert history["val_loss"] == pytest.approx(float(val[:, 0].mean()), rel=1e-2)
    assert history["val_accuracy"] == pytest.approx(float(val[:, 1].mean()), abs=0.02)
    train = evaluation.score(model, reading.open_split(data, "train"), setup)
    assert history["train_accuracy"] == pytest.approx(float(train[:, 1].mean()), abs=0.02)


def count_computed(monkeypatch):
    """How many parts have been computed: a list of numbers of patches that grows."""
    computed = []
    real = features._write

    def write(path, found):
        computed.append(len(found))
        real(path, found)

    monkeypatch.setattr(features, "_write", write)
    return computed


def test_a_stopped_probe_goes_on_where_it_was_and_comes_to_the_same_bits(
    data, probe, tmp_path, monkeypatch, capsys
):
    computed = count_computed(monkeypatch)
    real = features._write

    def write_and_be_stopped(path, found):
        real(path, found)
        if len(computed) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(features, "_write", write_and_be_stopped)
    with pytest.raises(SystemExit) as stopped:
        train_classification.main(flags(data, tmp_path / "run"))
    assert stopped.value.code == 1
    assert "goes on with the features" in capsys.readouterr().out
    assert len(computed) == 4
    monkeypatch.setattr(features, "_write", real)
    train_classification.main(flags(data, tmp_path / "run", "--resume"))
    assert len(computed) == 9  # 6 arrays of train and 3 of val, each once
    assert_same(probe, tmp_path / "run")


def test_folds_and_sets_cut_anew_share_features(data, tmp_path):
    """Another set of the same rasters finds most of them, wherever it lies; JPEGs are their own."""
    raw = tmp_path / "raw"
    shutil.copytree(data.parent / "raw", raw)
    for city in raw.iterdir():  # another fold: another site is the last
        (city / "site0").rename(city / "site9")
    again = {**SIZES, "--image-size": 32, "--raw": raw, "--out": tmp_path / "fold"}
    preprocessing.main(as_flags(again))
    parts = {
        name: {
            source.file.name
            for source in features.find_sources(tmp_path, reading.open_split(root, "train"))
        }
        for name, root in (("here", data), ("fold", tmp_path / "fold"))
    }
    assert len(parts["here"]) == len(parts["fold"]) == 6
    assert len(parts["here"] & parts["fold"]) == 3  # site1 of each city, which both train on


def test_other_weights_and_another_precision_have_features_of_their_own(tmp_path):
    torch.manual_seed(0)
    model = checkpoints.initial_network("resnet18", 3)
    cpu = torch.device("cpu")
    exact, rounded = (evaluation.Setup(cpu, kind) for kind in (torch.float32, torch.bfloat16))
    first = features.of_network(tmp_path, "resnet18", model, exact)
    assert first != features.of_network(tmp_path, "resnet18", model, rounded)
    with torch.no_grad():
        model.fc.bias += 1  # features come before it
        assert first == features.of_network(tmp_path, "resnet18", model, exact)
        model.bn1.running_mean[0] += 1e-3
        assert first != features.of_network(tmp_path, "resnet18", model, exact)


def test_features_are_those_of_evaluate_whatever_else_is_computed(data, monkeypatch):
    torch.manual_seed(0)
    model = checkpoints.initial_network("resnet18", 3)
    setup = evaluation.Setup(torch.device("cpu"))
    train = reading.open_split(data, "train")
    parts = [part.patches for part in train.parts()]
    assert [index for part in parts for index in part] == list(range(len(train)))
    monkeypatch.setattr(evaluation, "batch_size", lambda device: 50)
    computed = list(evaluation.features_of_parts(model, train, parts[1:3], setup))
    alone = next(evaluation.features_of_parts(model, train, parts[2:], setup))
    assert torch.equal(computed[1], alone)
    expected = evaluation.evaluate(model, train, setup).features
    assert torch.allclose(torch.cat(computed), expected[parts[1].start : parts[2].stop], atol=1e-5)


def test_windows_without_data_have_no_features(tmp_path):
    """A region's part is as long as it has patches, and is another one if they are others."""
    array = reading.ArrayPatches.__new__(reading.ArrayPatches)
    regions = [
        Namespace(file=f"{i}.npy", without_data=text) for i, text in enumerate(("0", "", "0-3"))
    ]
    array.__dict__.update(
        root=tmp_path, regions=regions, image_size=32, step=16, _first=np.array([0, 4, 8, 12])
    )
    array._subset = np.array([1, 2, 3, 4, 5, 6, 7])
    parts = array.parts()
    assert [part.patches for part in parts] == [range(0, 3), range(3, 7)]
    assert parts[0].layout != parts[1].layout


def test_a_damaged_file_of_features_is_computed_again(data, probe, monkeypatch):
    shared = probe.parent / "features"
    kept = files(shared)
    one, other = sorted(shared.rglob("*.npy"))[:2]
    one.write_bytes(one.read_bytes()[:1000])
    np.save(other, np.zeros((5, 512), np.float16))
    computed = count_computed(monkeypatch)
    train_classification.main(flags(data, probe.parent / "after-damage"))
    assert len(computed) == 2
    assert files(shared) == kept
    assert_same(probe, probe.parent / "after-damage")


def test_features_too_large_for_float16_are_refused(tmp_path):
    with pytest.raises(InputError, match="above 65504"):
        features._write(tmp_path / "one.npy", torch.full((2, 3), 1e5))
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------- flags


def test_features_lie_beside_the_patch_set():
    args = train_classification.read_flags(["--probe", "--data", "/somewhere/patches"])
    assert str(features.folder_of(args)) == "/somewhere/features"


@pytest.mark.parametrize(
    "more, said",
    [
        (["--epochs", "100"], "--epochs would"),  # also where it is what training has by default
        (["--lr", "0.1", "--turns"], "--lr, --turns would"),
        (["--recipe", "robust"], "--recipe would"),
        (
            ["--no-balanced", "--compile", "--save-every", "5"],
            "--balanced, --compile, --save-every",
        ),
        (["--batch-size", "64", "--label-smoothing", "0.1"], "--batch-size, --label-smoothing"),
    ],
)
def test_flags_that_mean_nothing_with_a_probe_are_refused_by_name(more, said):
    with pytest.raises(InputError) as refused:
        train_classification.read_flags(["--probe", *more])
    for part in said.split(", "):
        assert part in str(refused.value)


def test_where_features_lie_means_nothing_without_a_probe():
    with pytest.raises(InputError, match="add --probe"):
        train_classification.read_flags(["--features", "somewhere"])


def test_a_probe_and_a_training_run_are_not_mixed(data, probe, finished):
    with pytest.raises(InputError, match="--resume"):
        train_classification.main(flags(data, probe))
    for out, more in (
        (probe, ("--seed", "1")),
        (
            probe,
            ("--amp", "bf16" if load(probe / "last.pth")["args"]["dtype"] != "bfloat16" else "off"),
        ),
    ):
        with pytest.raises(InputError, match="would not give that run's result"):
            train_classification.main(flags(data, out, "--resume", *more))
    with pytest.raises(InputError, match="probe was False, is True"):
        train_classification.main(flags(data, finished, "--resume"))
    before = files(probe)
    train_classification.main(flags(data, probe, "--resume"))  # it is done
    assert files(probe) == before


def test_torchrun_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "WORLD", 2)
    with pytest.raises(InputError, match="without torchrun"):
        train_classification.main(flags(data, tmp_path / "run"))
