"""One self-contained page about a run, for people who do not read CSV.

    python -m dl_slicer.report.page checkpoints/resnet50/test_b

Writes report.html into the folder from the files that test_classification.py left there, and from config.json and log.csv beside the
checkpoint. No network, no scripts from elsewhere; it opens from disk. What a run lacks (a log, intervals, portraits) is left out or said.
"""

import base64
import csv
import html
import io
import json
import math
import shlex
import time
import unicodedata
from pathlib import Path

from PIL import Image

from dl_slicer.cities import city_code
from dl_slicer.cli import InputError, Parser, printable, run
from dl_slicer.files import atomic

BUDGET = 5_600_000  # bytes of JPEG in the portraits: a third more as text, and the page stays below 10 MB
SIZES = (
    (224, 80),
    (192, 76),
    (160, 72),
    (128, 64),
    (96, 50),
)  # side of a portrait's patch and JPEG quality, best first
# Flags of train_classification.py that are left out of the command line at these values, those of its published recipe as well unless the
# recipe is another, and what config.json says besides flags.
PLAIN = {
    "recipe": "published",
    "amp": "auto",
    "device": "auto",
    "seed": 0,
    "balanced": True,
    "compile": False,
    "deterministic": False,
}
PUBLISHED = {
    "optimizer": "adam",
    "weight_decay": 0.0,
    "schedule": "constant",
    "average": 0.0,
    "label_smoothing": 0.0,
    "flips": True,
    "turns": False,
    "light": 0.0,
}
NO_FLAGS = ("dtype", "data_set", "device_name", "threads", "processes", "versions")


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("folder", help="where test_classification.py wrote its results")
    print(write(parser.parse_args(argv).folder))


def write(out, run_folder=None):
    """Write <out>/report.html and return its path. run_folder: where config.json and log.csv lie; else that of the checkpoint."""
    out = Path(out)
    try:
        metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        cities = table(out / "per_city.csv")
        where = (
            [Path(run_folder)] if run_folder else [Path(metrics["checkpoint"]).parent, out.parent]
        )
        beside = next(
            (
                folder
                for folder in where
                if (folder / "config.json").is_file() or (folder / "log.csv").is_file()
            ),
            where[0],
        )
        config, log = read_json(beside / "config.json"), table(beside / "log.csv")
        data_set = read_json(Path(metrics["data"]) / "dataset.json")
        sections = [
            ("figures", "How good it is", headline(metrics, cities)),
            (
                "cities",
                "City by city",
                city_table(cities, metrics, (out / "portraits" / "portraits.csv").is_file()),
            ),
            (
                "confusions",
                "What is taken for what",
                confusion(out / "confusion_matrix.csv", metrics),
            ),
            ("resemblance", "Which cities resemble each other", resemblance(out, metrics)),
            ("portraits", "What makes each city itself", portraits(out / "portraits", cities)),
            ("calibration", "Does it know when it is unsure?", calibration(out, metrics)),
            ("training", "How it was trained", training(log, config, data_set, metrics)),
            ("reproduce", "How to reproduce it", reproduce(metrics, config, data_set)),
        ]
    except (KeyError, ValueError, TypeError, FileNotFoundError, csv.Error) as error:
        what = getattr(error, "filename", None) or out
        raise InputError(
            f"{printable(what)}: no whole results of test_classification.py ({printable(type(error).__name__)}: {printable(error)}); run it again"
        ) from None
    sections = [section for section in sections if section[2]]
    page = PAGE.format(
        title=esc(
            f"{network(metrics)} on {len(cities)} cities: {plain_percent(metrics['accuracy'])}"
        ),
        style=STYLE,
        script=SCRIPT,
        kicker=esc(
            f"{network(metrics)} · {metrics['split']} · {time.strftime('%Y-%m-%d', time.localtime((out / 'metrics.json').stat().st_mtime))}"
        ),
        heading=f"{len(cities)} cities, told apart from above",
        lead=lead(metrics, cities),
        nav="".join(f'<a href="#{key}">{esc(heading)}</a>' for key, heading, _ in sections),
        sections="".join(
            f'<section id="{key}" aria-labelledby="h-{key}"><h2 id="h-{key}">{esc(heading)}</h2>{body}</section>'
            for key, heading, body in sections
        ),
    )
    with atomic(out / "report.html", "w", encoding="utf-8", errors="replace") as file:
        file.write(page)
    return out / "report.html"


# Files


def table(file):
    """The rows of a CSV file as dicts; [] if there is no such file."""
    if not file.is_file():
        return []
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def read_json(file):
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def number(text):
    """A CSV field as a float; None if it is empty."""
    return float(text) if text not in ("", None) else None


# Words


def esc(text):
    """Text for HTML: markup characters escaped, control characters and what is no character replaced."""
    return html.escape(
        "".join(
            "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") and c != "\n" else c
            for c in str(text)
        )
    )


def name(city):
    """A name in whatever script, that does not turn the direction of its surroundings."""
    return f"<bdi>{esc(city)}</bdi>"


def plain_percent(value):
    return "–" if value is None else f"{100 * value:.1f}\u00a0%"


percent = plain_percent


def span(ends):
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}\u00a0%"


def count(n, one, many=None):
    return f"{n:,}\u00a0{one if n == 1 else many or one + 's'}".replace(",", "\u202f")


def network(metrics):
    return str(metrics.get("arch", "")).replace("resnet", "ResNet-")


def lead(metrics, cities):
    seen = {
        "train": "places it was trained on",
        "val": "the places that its training was watched on",
    }.get(metrics["split"], "places never seen in training")
    ends = metrics.get("accuracy_ci95")
    interval = f" (95\u00a0% interval {span(ends)})" if ends else ""
    return (
        f"Of {count(metrics['n'], 'patch', 'patches')} of {seen}, <strong>{percent(metrics['accuracy'])}</strong> were given their true city{interval}. "
        f"Blind guessing would be right {'once' if len(cities) > 1 else 'always'}{f' in {len(cities)}' if len(cities) > 1 else ''}."
    )


# Sections, each as HTML


def headline(metrics, cities):
    ends = metrics.get("accuracy_ci95")
    tiles = [
        (
            "Patches given their true city",
            percent(metrics["accuracy"]),
            f"95\u00a0% interval {span(ends)}" if ends else "no interval",
        ),
        (
            "True city among the first five",
            percent(metrics["top5_accuracy"]),
            "of each patch's probabilities",
        ),
        (
            "Whole rasters",
            percent(metrics["raster_accuracy"]),
            f"of {count(metrics['n_rasters'], 'raster')}, by the mean over their patches",
        ),
        ("Every city weighing alike", percent(metrics["balanced_accuracy"]), "balanced accuracy"),
        ("F1, mean of the cities", percent(metrics["macro_f1"]), "precision and recall in one"),
        ("Calibration error", percent(metrics["ece"]), "how far stated probabilities are off"),
    ]
    body = "".join(
        f"<div><dt>{esc(label)}</dt><dd><b>{value}</b><span>{esc(note)}</span></dd></div>"
        for label, value, note in tiles
    )
    weak = sorted(
        (row for row in cities if number(row["accuracy"]) is not None),
        key=lambda row: float(row["accuracy"]),
    )
    words = ""
    if len(weak) > 1 and float(weak[0]["accuracy"]) < float(weak[-1]["accuracy"]):
        best = [row for row in weak if row["accuracy"] == weak[-1]["accuracy"]]
        easiest = (
            f"The easiest city is {name(best[0]['city'])}"
            if len(best) == 1
            else f"{len(best)} cities are easiest"
        )
        words = f"<p>{easiest} with {percent(float(best[0]['accuracy']))}, the hardest is {name(weak[0]['city'])} with {percent(float(weak[0]['accuracy']))}.</p>"
    if ends:
        note = (
            "<p class=note><b>What the interval means.</b> Patches of one raster overlap and look alike, so they do not count as so many independent "
            f"tests; whole rasters do ({esc(metrics.get('interval', ''))}). Were the test repeated with other rasters of the same kind, about 95 of 100 such "
            "intervals would hold the true value."
        )
        note += (
            " With so few rasters the interval itself is uncertain.</p>"
            if metrics["n_rasters"] < 30
            else "</p>"
        )
    else:
        note = f"<p class=note><b>No interval.</b> {esc(metrics.get('interval') or 'There are too few rasters for one.')}</p>"
    if metrics["split"] in ("train", "val"):
        note += "<p class=note><b>Not a test.</b> The network or its training has seen these places; figures to publish come from the test split.</p>"
    return f"{words}<dl class=tiles>{body}</dl>{note}"


def th(label, numeric=False, first=False):
    sort = ' aria-sort="ascending"' if first else ""
    return f'<th scope="col"{sort}{" class=n" if numeric else ""}><button type="button">{label}</button></th>'


def td(value, content=None, numeric=True):
    """A cell; value is what its column is sorted by."""
    content = ("–" if value is None else esc(value)) if content is None else content
    return f'<td{" class=n" if numeric else ""} data-v="{"" if value is None else esc(value)}">{content}</td>'


def sortable(caption, head, rows):
    return (
        f'<div class=scroll role="region" aria-label="{esc(caption)}" tabindex="0"><table class=sortable><caption><span>{esc(caption)}. '
        f"Click on a heading to sort.</span></caption><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table></div>"
    )


def bar(accuracy, low, high):
    """The accuracy as a bar with its interval, 0 to 100 %."""
    if accuracy is None:
        return ""
    whisker = (
        ""
        if low is None
        else f'<path class=w d="M{100 * low:.1f} 3v8M{100 * high:.1f} 3v8M{100 * low:.1f} 7h{100 * (high - low):.1f}"/>'
    )
    return f'<svg class=bar viewBox="0 0 100 14" preserveAspectRatio="none" aria-hidden="true"><rect class=t width="100" height="14"/><rect class=b width="{100 * accuracy:.1f}" height="14"/>{whisker}</svg>'


def city_table(cities, metrics, linked):
    rows = []
    for i, row in enumerate(cities):
        accuracy, low, high = (number(row[key]) for key in ("accuracy", "ci95_low", "ci95_high"))
        label = (
            f'<a href="#city-{i}">{name(row["city"])}</a>'
            if linked and int(row["n"])
            else name(row["city"])
        )
        ends = (
            f"{100 * low:.1f} – {100 * high:.1f}"
            if low is not None
            else f"<span class=quiet>{esc(row.get('interval') or 'none')}</span>"
        )
        rows.append(
            f'<th scope="row" data-v="{esc(row["city"])}">{label}</th>'
            + td(accuracy, percent(accuracy))
            + td(accuracy, bar(accuracy, low, high), False)
            + td(low, ends)
            + td(number(row["precision"]), percent(number(row["precision"])))
            + td(number(row["f1"]), percent(number(row["f1"])))
            + td(row["n"])
            + td(row["rasters"])
            + td(row["most_confused_with"] or None, name(row["most_confused_with"] or "–"), False)
        )
    head = (
        th("City", first=True)
        + th("Accuracy", True)
        + '<th scope="col"><span class=sr>accuracy as a bar</span></th>'
        + th("95\u00a0% interval", True)
        + th("Precision", True)
        + th("F1", True)
        + th("Patches", True)
        + th("Rasters", True)
        + th("Taken for")
    )
    alone = sum(number(row["ci95_low"]) is None and int(row["n"]) > 0 for row in cities)
    words = (
        "Accuracy is the share of a city's patches that were given its name; precision, the share of patches given its name that are really from there; "
        "F1 puts both into one figure."
    )
    if alone:
        words += f" {'No' if alone == len(cities) else 'Some'} {'city has' if alone == len(cities) else 'cities have'} {'enough' if alone == len(cities) else 'too few'} rasters for an interval of {'its' if alone == len(cities) else 'their'} own."
    return f"<p>{words}</p>{sortable('Accuracy by city', head, rows)}"


def short(code, most=9):
    return code if len(code) <= most else code[: most - 1] + "…"


def confusion(file, metrics):
    if not file.is_file():
        return ""
    with open(file, newline="", encoding="utf-8") as lines:
        (_, *classes), *rows = csv.reader(lines)
    matrix = [[int(value) for value in row[1:]] for row in rows]
    k = len(classes)
    codes = [short(city_code(city)) for city in classes]
    cell, size = (44, 13) if k <= 8 else (30, 12) if k <= 15 else (17, 10.5)
    side = 12 + max(map(len, codes)) * size * 0.66
    parts = []
    for i, row in enumerate(matrix):
        middle = side + (i + 0.5) * cell
        parts.append(
            f'<text x="{side - 6:.1f}" y="{middle:.1f}" class=r>{esc(codes[i])}</text>'
            f'<text transform="translate({middle:.1f} {side - 6:.1f}) rotate(-90)">{esc(codes[i])}</text>'
        )
        for j, n in enumerate(row):
            if n:
                share = n / sum(row)
                x, y = side + j * cell, side + i * cell
                kind = "right" if i == j else "wrong"
                words = (
                    f"{classes[i]} recognised" if i == j else f"{classes[i]} taken for {classes[j]}"
                )
                parts.append(
                    f'<g><title>{esc(words)}: {n} of {sum(row)} ({100 * share:.1f} %)</title><rect class={kind} x="{x:.1f}" y="{y:.1f}" width="{cell - 1}" '
                    f'height="{cell - 1}" fill-opacity="{0.12 + 0.88 * math.sqrt(share):.2f}"/>'
                    + (
                        f'<text x="{x + cell / 2 - 0.5:.1f}" y="{y + cell / 2:.1f}" class="m{" on" if share > 0.3 else ""}">'
                        f"{'&lt;1' if share < 0.005 else f'{100 * share:.0f}'}</text>"
                        if k <= 15
                        else ""
                    )
                    + "</g>"
                )
    whole = side + k * cell + 2
    wrong = metrics["n"] - sum(matrix[i][i] for i in range(k))
    picture = (
        f'<div class=scroll role="region" aria-label="Confusion matrix" tabindex="0"><svg class=matrix role="img" aria-label="Confusion matrix of {k} cities: '
        f'{metrics["n"] - wrong} of {metrics["n"]} patches on the diagonal" viewBox="0 0 {whole:.0f} {whole:.0f}" font-size="{size}" width="{whole:.0f}" height="{whole:.0f}">'
        f'<rect class=ground x="{side:.1f}" y="{side:.1f}" width="{k * cell}" height="{k * cell}"/>{"".join(parts)}</svg></div>'
    )
    pairs = metrics.get("confused_pairs") or []
    words = "".join(
        f"<li>{name(pair['a'])} and {name(pair['b'])}: {count(pair['n'], 'patch', 'patches')}, {percent(pair['share'])} of both "
        f"<span class=quiet>({pair['a_as_b']} one way, {pair['b_as_a']} the other)</span></li>"
        for pair in pairs
    )
    most = (
        f"<h3>Most often confused</h3><ol class=pairs>{words}</ol>"
        if words
        else "<p>No two cities were confused.</p>"
    )
    return (
        f"<p>Each row is a true city, each column what its patches were taken for{', in per cent of the row' if k <= 15 else ''}: the stronger the colour, the larger "
        f"the share. On the diagonal is what was right; {count(wrong, 'patch', 'patches')} {'lies' if wrong == 1 else 'lie'} beside it.</p>"
        f"<div class=beside>{picture}<div>{most}</div></div>"
    )


def resemblance(out, metrics):
    near, pairs = table(out / "nearest.csv"), table(out / "similarity.csv")
    if not near:
        return ""
    words = [
        "Two views: which cities the network takes for each other, and which look alike to it (the mean of what its last layer but one makes of their patches)."
    ]
    for key, text in (
        ("features", "Most alike to it are {} and {} (cosine {:.2f})."),
        (
            "confusion",
            "Most often taken for each other are {} and {} ({:.1f}\u00a0% of their patches).",
        ),
    ):
        known = [(number(row[key]), row) for row in pairs if number(row[key])]
        if known:
            value, row = max(known, key=lambda pair: pair[0])
            if value > 0:
                words.append(
                    text.format(
                        name(row["a"]), name(row["b"]), value if key == "features" else 100 * value
                    )
                )
    disagree = [row for row in near if row["views"] == "disagree"]
    if disagree:
        some = ", ".join(name(city_code(row["city"])) for row in disagree[:12]) + (
            f" and {len(disagree) - 12} more" if len(disagree) > 12 else ""
        )
        words.append(
            f"The two views disagree on the neighbours of {count(len(disagree), 'city', 'cities')}: {some}."
        )
    if metrics.get("views_rank_correlation") is not None:
        words.append(
            f"Over all pairs their rank correlation is {metrics['views_rank_correlation']:.2f} (1: the same order, 0: unrelated)."
        )

    def three(row, view):
        found = [row[f"{view}_{i}"] for i in (1, 2, 3) if row[f"{view}_{i}"]]
        return " · ".join(
            f'<abbr title="{esc(city)}">{name(city_code(city))}</abbr>' for city in found
        ) or "–", found[0] if found else None

    rows = []
    for row in near:
        confused, alike = three(row, "confusion"), three(row, "features")
        rows.append(
            f'<th scope="row" data-v="{esc(row["city"])}">{name(row["city"])}</th>'
            + td(confused[1] and city_code(confused[1]), confused[0], False)
            + td(alike[1] and city_code(alike[1]), alike[0], False)
            + td(
                row["views"],
                f'<span class="tag {esc(row["views"].split()[0])}">{esc(row["views"])}</span>',
                False,
            )
        )
    head = th("City", first=True) + th("By confusions") + th("By features") + th("The views")
    picture = image(
        out / "similarity.png",
        "Dendrogram and heat maps of the cities' resemblance, by features above and by confusions below",
        len(near) > 12,
    )
    return f"<p>{' '.join(words)}</p>{sortable('The nearest three cities of each', head, rows)}{picture}"


def image(file, words, large=False):
    """A PNG as it is, as a data URI; on narrow screens a large one can be scrolled instead of shrinking."""
    if not file.is_file():
        return ""
    with Image.open(file) as picture:
        width, height = picture.size
    source = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    return (
        f'<div class="scroll card{" wide" if large else ""}" role="region" aria-label="{esc(words)}" tabindex="0"><img class="{"large" if large else "plot"}" src="{source}" '
        f'width="{width}" height="{height}" alt="{esc(words)}"></div>'
    )


def portraits(folder, cities):
    rows = table(folder / "portraits.csv")
    if not rows:
        return ""
    for side, quality in SIZES:
        # Sheets are large, so only a part of them is tried.
        if (
            sum(map(len, encode(folder, rows[::9], side, quality))) / len(rows[::9]) * len(rows)
            <= BUDGET
        ):
            break
    tiles = encode(folder, rows, side, quality)
    by_city, body = {}, []
    for row, tile in zip(rows, tiles):
        by_city.setdefault(row["city"], {}).setdefault(row["role"], []).append((row, tile))
    for i, city in enumerate(cities):
        roles = by_city.get(city["city"])
        if not roles:
            continue
        groups = []
        for role, found in roles.items():
            first = found[0][0]
            own, other, n = name(city["city"]), name(first["explained"]), int(first["available"])
            fewer = " They overlap, so only some are shown." if len(found) < min(n, 4) else ""
            words = {
                "typical": f"<b>What makes it {own}.</b> The surest of {count(n, 'recognised patch', 'recognised patches')}, and what in them spoke for it.",
                "least unlike": f"<b>Never recognised.</b> None of {count(n, 'patch', 'patches')} was; these are the least unlike, and what in them spoke for {own}.",
                "taken for neighbour": f"<b>Where it could be {other}.</b> {count(n, 'patch was', 'patches were')} taken for it; what in them spoke for {other}.",
                "closest to neighbour": f"<b>Where it comes close to {other}.</b> None of {count(n, 'patch', 'patches')} was taken for it; these come closest, and what in them spoke for it.",
            }[role] + fewer
            figures = "".join(
                f'<figure><img loading=lazy decoding=async width="{side}" height="{2 * side}" src="data:image/jpeg;base64,{base64.b64encode(tile).decode()}" '
                f'alt="Patch of {esc(row["true"])}, and below it what in it spoke for {esc(row["explained"])} ({100 * float(row["probability"]):.1f} %)">'
                f"<figcaption>{esc(city_code(row['explained']))} {100 * float(row['probability']):.1f}\u00a0%</figcaption></figure>"
                for row, tile in found
            )
            groups.append(f"<div><p>{words}</p><div class=strip>{figures}</div></div>")
        accuracy = percent(number(city["accuracy"]))
        body.append(
            f'<details class=portrait id="city-{i}"{" open" if len(cities) <= 8 or not body else ""}><summary><h3>{name(city["city"])}</h3><span class=quiet>{accuracy} recognised</span></summary>'
            f"<div class=groups>{''.join(groups)}</div></details>"
        )
    missing = [city["city"] for city in cities if city["city"] not in by_city]
    lacking = (
        f"<p class=quiet>Without patches here: {', '.join(map(name, missing))}.</p>"
        if missing
        else ""
    )
    return (
        "<p>Above, a patch as seen by the network; below it, what in it spoke most for the city named (Relevance-CAM, what lies above the map's mean + one standard deviation; the rest is black). "
        "Percentages are the network's probabilities. Masks show what the network used, not why a place came to look so.</p>"
        f'<p class=tools><button type="button" data-details="open">Open all</button> <button type="button" data-details="close">Close all</button></p>{"".join(body)}{lacking}'
    )


def encode(folder, rows, side, quality):
    """Each patch over its mask, cut from the sheets, as the bytes of a JPEG."""
    tiles, name_of_open, sheet = [], None, None
    for row in rows:
        if row["file"] != name_of_open:
            name_of_open = row["file"]
            with Image.open(folder / name_of_open) as opened:
                sheet = opened.convert("RGB")
        x, y, panel = int(row["x"]), int(row["y"]), int(row["side"])
        tile = Image.new("RGB", (side, 2 * side))
        for k, top in enumerate((y, int(row["mask_y"]))):
            tile.paste(
                sheet.crop((x, top, x + panel, top + panel)).resize(
                    (side, side), Image.Resampling.LANCZOS
                ),
                (0, k * side),
            )
        data = io.BytesIO()
        tile.save(data, "JPEG", quality=quality, optimize=True)
        tiles.append(data.getvalue())
    return tiles


def calibration(out, metrics):
    picture = image(
        out / "reliability.png",
        "Reliability diagram: in each bin of the highest probability, how often it was right, and how many patches fall into it",
    )
    return (
        f"<p>A network that says 80\u00a0% should be right in 80 of 100 cases. Here the stated probability and the share that was right differ by {percent(metrics['ece'])} on average "
        f"(expected calibration error, {count(metrics['n'], 'patch', 'patches')}).{' Bars below the dashed line: too sure; above it: too modest.' if picture else ''}</p>{picture}"
    )


def training(log, config, data_set, metrics):
    facts = [
        (
            "Network",
            network(metrics)
            + (
                {
                    "none": ", from scratch",
                    "imagenet": ", from ImageNet weights",
                    "imagenet-v2": ", from ImageNet weights (V2)",
                }.get(config.get("weights"), f", from {config.get('weights')}")
                if config
                else ""
            ),
        )
    ]
    counts = data_set.get("counts", {})
    whole = {
        split: sum(counts[split].values()) for split in counts if isinstance(counts[split], dict)
    }
    given = config.get("data_set", {})
    if whole.get("train") or given.get("train"):
        facts.append(
            (
                "Trained on",
                f"{count(whole.get('train') or given['train'], 'patch', 'patches')} of {count(len(given.get('classes') or data_set['classes']), 'city', 'cities')}; "
                f"watched on {count(whole.get('val') or given['val'], 'patch', 'patches')} (val)",
            )
        )
    facts.append(
        (
            "Measured on",
            f"{count(metrics['n'], 'patch', 'patches')} of {count(metrics['n_rasters'], 'raster')} ({metrics['split']})",
        )
    )
    size = {**given, **data_set}
    if size.get("patch_size"):
        facts.append(
            (
                "Patches",
                f"{size['patch_size']} × {size['patch_size']} pixels every {size['stride']}, seen at {size['image_size']} × {size['image_size']}",
            )
        )
    if config:
        words = (
            ("recipe", "{}"),
            ("optimizer", "{}"),
            ("lr", "rate {}"),
            ("batch_size", "batches of {}"),
            ("epochs", "{} epochs"),
            ("dtype", "{}"),
            ("seed", "seed {}"),
        )
        facts.append(
            (
                "Recipe",
                ", ".join(
                    word.format(config[key]) for key, word in words if config.get(key) is not None
                ),
            )
        )
    else:
        facts.append(("Recipe", "not known: no config.json beside the checkpoint"))
    if metrics.get("epoch") is not None:
        facts.append(
            (
                "Epoch measured",
                str(metrics["epoch"])
                + (
                    " (chosen by validation accuracy)"
                    if Path(metrics["checkpoint"]).name == "best.pth"
                    else ""
                ),
            )
        )
    body = (
        "<dl class=facts>"
        + "".join(f"<div><dt>{esc(key)}</dt><dd>{esc(value)}</dd></div>" for key, value in facts)
        + "</dl>"
    )
    if not log:
        return body + "<p class=quiet>No log.csv beside the checkpoint, so no training curves.</p>"
    best = max(log, key=lambda row: float(row["val_accuracy"]))
    words = (
        f"<p>After {count(len(log), 'epoch')} {percent(float(log[-1]['train_accuracy']))} of the training patches were right and {percent(float(log[-1]['val_accuracy']))} of those it was only watched on; "
        f"at best {percent(float(best['val_accuracy']))}, in epoch {esc(best['epoch'])}. A gap between the lines is what was learnt by heart.</p>"
    )
    return f"{body}{words}<div class=charts>{chart(log, 'accuracy', metrics.get('epoch'))}{chart(log, 'loss', metrics.get('epoch'))}</div>"


def chart(log, kind, chosen):
    """Train and val of an epoch as an inline SVG."""
    width, height, left, right, top, bottom = 460, 270, 44, 14, 34, 34
    series = {
        split: [(int(row["epoch"]), float(row[f"{split}_{kind}"])) for row in log]
        for split in ("train", "val")
    }
    values = sorted(
        value for points in series.values() for _, value in points if math.isfinite(value)
    )
    if not values:
        return ""
    # A single bad epoch must not flatten all others; what lies above leaves the picture.
    highest = (
        1.0
        if kind == "accuracy"
        else max(1e-9, min(values[-1], 3 * values[int(0.9 * (len(values) - 1))])) * 1.05
    )
    last = max(epoch for epoch, _ in series["train"])
    first = min(1, last)

    def at(epoch, value):
        x = left + (width - left - right) * (
            (epoch - first) / (last - first) if last > first else 0.5
        )
        return x, top + (height - top - bottom) * (1 - min(value, highest) / highest)

    step = 10 ** math.floor(math.log10(highest / 2)) if highest > 0 else 1
    step = next(step * k for k in (1, 2, 5, 10) if highest / (step * k) <= 5.2)
    parts = []
    for i in range(int(highest / step + 1e-6) + 1):
        y = at(first, i * step)[1]
        label = f"{100 * i * step:.0f} %" if kind == "accuracy" else f"{i * step:g}"
        parts.append(
            f'<path class=grid d="M{left} {y:.1f}H{width - right}"/><text x="{left - 6}" y="{y:.1f}" class=r>{label}</text>'
        )
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if last / n <= 8)
    ticks = sorted(
        {first, *range(every, last + 1, every)}
        - ({every} if every - first == 1 and every > 1 else set())
    )
    parts += [
        f'<text x="{at(epoch, 0)[0]:.1f}" y="{height - bottom + 15}" class=m>{epoch}</text>'
        for epoch in ticks
    ]
    if chosen and first <= chosen <= last:
        x = at(chosen, 0)[0]
        parts.append(f'<path class=chosen d="M{x:.1f} {top}V{height - bottom}"/>')
    for split, points in series.items():
        places = [at(*point) for point in points if math.isfinite(point[1])]
        parts.append(
            f'<polyline class={split} points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'
        )
        if len(points) <= 30:
            parts += [
                f'<circle class={split} cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in places
            ]
    parts.append(f'<text x="{left}" y="14" class=h>{kind.capitalize()}</text>')
    x = width - right
    for label, kind_of_line, length in (
        ("epoch measured", "chosen", 112),
        ("watched (val)", "val", 92),
        ("train", "train", 42),
    ):
        if kind_of_line != "chosen" or chosen:
            parts.append(
                f'<text x="{x}" y="14" class=r>{label}</text><path class={kind_of_line} d="M{x - length} 14h12"/>'
            )
            x -= length + 12
    ends = ", ".join(
        f"{split} from {points[0][1]:.3g} to {points[-1][1]:.3g}"
        for split, points in series.items()
    )
    return (
        f'<svg class=chart viewBox="0 0 {width} {height}" role="img" aria-label="{kind.capitalize()} over {len(log)} epochs: {ends}">{"".join(parts)}'
        f'<text x="{(left + width - right) / 2}" y="{height - 6}" class=m>epoch</text></svg>'
    )


def reproduce(metrics, config, data_set):
    lines = []
    if data_set:
        raw = Path(metrics["data"], data_set["raw"])
        lines.append(
            [
                "python",
                "preprocessing.py",
                "--raw",
                str(Path(*normal(raw))),
                "--out",
                metrics["data"],
                "--patch-size",
                data_set["patch_size"],
                "--stride",
                data_set["stride"],
                "--image-size",
                data_set["image_size"],
                "--test-b",
                data_set.get("test_b", 500),
                "--seed",
                data_set.get("seed", 0),
            ]
        )
    if config:
        line = ["python", "train_classification.py"]
        plain = PLAIN | (PUBLISHED if config.get("recipe", "published") == "published" else {})
        for key, value in config.items():
            flag = f"--{key.replace('_', '-')}"
            if key in NO_FLAGS or value is None or value == plain.get(key):
                continue
            if isinstance(value, bool):
                line += [flag if value else f"--no-{flag[2:]}"]
            elif not isinstance(value, dict):
                line += [flag, *(value if isinstance(value, list) else [value])]
        lines.append(line)
    for program in (["test_classification.py"], ["-m", "relevance_cam"]):
        lines.append(
            [
                "python",
                *program,
                "--checkpoint",
                metrics["checkpoint"],
                "--data",
                metrics["data"],
                "--split",
                metrics["split"],
            ]
        )
    if metrics.get("tta"):
        lines[-2].append("--tta")
    # A line break within a flag would read as two.
    text = "\n".join(
        "<code>"
        + " ".join(f"<span>{esc(shlex.quote(str(word)))}</span>" for word in line)
        + "</code>"
        for line in lines
    )
    versions = {
        **metrics.get("versions", {}),
        "device": metrics.get("device"),
        "precision": metrics.get("dtype"),
    }
    before = config.get("versions", {})
    rows = "".join(
        f'<tr><th scope="row">{esc(key)}</th><td>{esc(value)}</td><td>{esc(before.get(key, {"device": config.get("device_name"), "precision": config.get("dtype")}.get(key)) or "–")}</td></tr>'
        for key, value in versions.items()
        if value is not None
    )
    settings = (
        f"<details><summary>All settings of the training (config.json)</summary><pre tabindex=0>{esc(json.dumps(config, indent=1, ensure_ascii=False))}</pre></details>"
        if config
        else ""
    )
    return (
        f"<p>These lines, run in the project's folder, make the patch set, the network, these figures and the saliency maps again.</p><pre class=commands tabindex=0>{text}</pre>"
        f'<div class=scroll role="region" aria-label="Versions" tabindex="0"><table><caption>Versions</caption><thead><tr><th scope="col">what</th><th scope="col">measured with</th>'
        f'<th scope="col">trained with</th></tr></thead><tbody>{rows}</tbody></table></div>{settings}'
    )


def normal(path):
    """The parts of a path with x/.. taken out."""
    parts = []
    for part in path.parts:
        if part == ".." and parts and parts[-1] not in ("..", "/"):
            parts.pop()
        else:
            parts.append(part)
    return parts or ["."]


STYLE = """
:root{color-scheme:light dark;--paper:#f6f5f1;--card:#fffefb;--ink:#20262a;--quiet:#5d676d;--line:#dddad1;--right:#1d6a86;--wrong:#b4511a;--good:#e3eef0;--soft:#ebe8e0;--on:#fff}
@media(prefers-color-scheme:dark){:root{--paper:#12171a;--card:#191f23;--ink:#e7e4dd;--quiet:#9eaab0;--line:#2d373c;--right:#62b4cf;--wrong:#e88f52;--good:#1d3138;--soft:#232b30;--on:#0c1114}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
@media(prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif;overflow-wrap:anywhere}
header,main,footer{max-width:70rem;margin:auto;padding:0 clamp(1rem,4vw,2.5rem)}
header{padding-top:clamp(2rem,6vw,4.5rem)}
h1,h2,.lead{font-family:Charter,"Iowan Old Style","Source Serif 4",Georgia,"DejaVu Serif",serif;font-weight:600;text-wrap:balance}
h1{font-size:clamp(2rem,6vw,3.3rem);line-height:1.1;margin:.3rem 0 1rem;letter-spacing:-.015em}
h2{font-size:clamp(1.45rem,3.5vw,1.9rem);line-height:1.2;margin:0 0 .7rem}
h3{font-size:1.05rem;margin:0}
p{max-width:46rem;margin:.6rem 0}
.kicker{color:var(--quiet);font-size:.9rem;margin:0}
.lead{font-weight:400;font-size:clamp(1.15rem,2.6vw,1.45rem);line-height:1.45;max-width:44rem;text-wrap:pretty}
.lead strong{color:var(--right)}
nav{display:flex;flex-wrap:wrap;gap:.25rem 1.2rem;margin-top:1.6rem;padding:.8rem 0;border-block:1px solid var(--line);font-size:.92rem}
a{color:var(--right);text-underline-offset:.18em;text-decoration-thickness:1px}
nav a{text-decoration:none}nav a:hover{text-decoration:underline}
section{padding:clamp(2rem,5vw,3.4rem) 0 0}
.quiet,caption,figcaption{color:var(--quiet)}
.sr{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.tiles{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:1px;background:var(--line);border:1px solid var(--line);border-radius:.6rem;overflow:hidden;margin:1.4rem 0}
@media(min-width:48rem){.tiles{grid-template-columns:repeat(3,1fr)}}
.tiles>div{background:var(--card);padding:1rem 1.2rem}
.tiles dt{font-size:.9rem;color:var(--quiet)}
.tiles dd{margin:0}.tiles b{display:block;font-size:1.9rem;font-weight:600;line-height:1.3;font-variant-numeric:tabular-nums;letter-spacing:-.01em}
.tiles span{font-size:.84rem;color:var(--quiet)}
.note{border-left:3px solid var(--right);padding:.1rem 0 .1rem 1rem;font-size:.95rem}
.scroll{overflow-x:auto;max-width:100%;margin:1.1rem 0;border-radius:.4rem;position:relative}
:focus-visible{outline:2px solid var(--right);outline-offset:2px}
table{border-collapse:collapse;font-size:.92rem;line-height:1.35;font-variant-numeric:tabular-nums}
.sortable{min-width:100%}
caption{text-align:left;font-size:.86rem;padding-bottom:.4rem}caption span{position:sticky;left:0;display:inline-block;max-width:86vw}
th,td{padding:.42rem .62rem;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}
tbody th,thead th:first-child{padding-left:0}
tbody th{font-weight:500}
thead th{font-weight:600;font-size:.86rem;vertical-align:bottom}
.sortable tbody th{position:sticky;left:0;background:var(--paper);white-space:normal;min-width:8.5rem;max-width:16rem}
.sortable thead th:first-child{position:sticky;left:0;background:var(--paper)}
.n{text-align:right}td .quiet{font-size:.84rem}
tbody tr:hover>*{background:var(--soft)}
button{font:inherit;color:inherit;background:none;border:0;padding:0;cursor:pointer;text-align:inherit}
th button{font-weight:600;padding:.35rem 0}
th button::after{content:"\\2195";opacity:.35;margin-left:.3em;font-size:.85em}
th[aria-sort=ascending] button::after{content:"\\2191";opacity:1;color:var(--right)}
th[aria-sort=descending] button::after{content:"\\2193";opacity:1;color:var(--right)}
.tools button{border:1px solid var(--line);border-radius:2rem;padding:.3rem .9rem;font-size:.88rem;background:var(--card)}
.tools button:hover{border-color:var(--right)}
.bar{display:block;width:6rem;height:14px}.bar .t{fill:var(--soft)}.bar .b{fill:var(--right);opacity:.55}.bar .w{stroke:var(--ink);fill:none;stroke-width:1.4;vector-effect:non-scaling-stroke}
svg text{fill:var(--ink);dominant-baseline:central;font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace}
svg .r{text-anchor:end}svg .m{text-anchor:middle}
.matrix{display:block}.matrix .ground{fill:var(--soft)}.matrix .right{fill:var(--right)}.matrix .wrong{fill:var(--wrong)}.matrix .on{fill:var(--on)}
.matrix g:hover rect{stroke:var(--ink);stroke-width:1.5}
.beside{display:flex;flex-wrap:wrap;gap:0 2.5rem;align-items:flex-start}.beside>*{min-width:0;flex:0 1 auto}.beside>div:last-child{flex:1 1 18rem;margin-top:1.1rem}
.pairs{padding-left:1.9rem;margin:.6rem 0}.pairs li{margin:.35rem 0}
.tag{padding:.05rem .55rem;border-radius:1rem;background:var(--soft);font-size:.84rem}.tag.agree{background:var(--good)}.tag.disagree{color:var(--wrong)}
abbr{text-decoration:none}
.card:not(.wide){width:fit-content}.card{background:#fff;padding:.6rem;border:1px solid var(--line)}
.card img{display:block}.plot{max-width:100%;width:auto;height:auto;max-height:52rem}.large{width:100%;min-width:58rem;height:auto}
@media(prefers-color-scheme:dark){.card{background:#e9e7e2}.card img{mix-blend-mode:multiply}.strip img{filter:brightness(.92)}}
.portrait{border:1px solid var(--line);border-radius:.6rem;background:var(--card);margin:.7rem 0}
summary{cursor:pointer}
.portrait summary{padding:.75rem 1.1rem;display:flex;flex-wrap:wrap;gap:.1rem .8rem;align-items:baseline;list-style:none}
.portrait summary::-webkit-details-marker{display:none}
.portrait summary::before{content:"+";color:var(--right);font-weight:600;width:.8em}.portrait[open] summary::before{content:"\\2212"}
.groups{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:.7rem 2rem;padding:0 1.1rem 1.1rem}
.groups>div{display:grid;grid-template-rows:subgrid;grid-row:span 2;align-content:start}.groups p{font-size:.93rem;margin:.2rem 0 0}
.strip{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:.5rem}
@media(max-width:32rem){.strip{grid-template-columns:repeat(2,minmax(0,1fr));gap:.8rem .6rem}}
figure{margin:0}figure img{display:block;width:100%;height:auto;border-radius:.25rem}figcaption{font-size:.82rem;padding-top:.2rem;font-variant-numeric:tabular-nums}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:.7rem 2rem;margin:1rem 0}.facts dt{font-size:.86rem;color:var(--quiet)}.facts dd{margin:0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1.5rem 2.5rem;margin:1.4rem 0}
.chart{width:100%;height:auto;font-size:11.5px}.chart text{font-family:inherit;fill:var(--quiet)}.chart .h{font-weight:600;font-size:13px;fill:var(--ink)}
.chart .grid{stroke:var(--line)}.chart polyline,.chart path{fill:none;stroke-width:2}.chart .grid{stroke-width:1}
.chart .train{stroke:var(--quiet)}.chart .val{stroke:var(--right)}.chart circle{stroke:none}.chart circle.train{fill:var(--quiet)}.chart circle.val{fill:var(--right)}
.chart .chosen{stroke:var(--wrong);stroke-width:1.3;stroke-dasharray:4 3}
pre{overflow-x:auto;background:var(--soft);padding:1rem;border-radius:.5rem;font:.84rem/1.6 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre-wrap}
pre code{font:inherit;display:block;padding-left:2em;text-indent:-2em}.commands{white-space:normal}.commands code+code{margin-top:.5em}.commands span{display:inline-block;text-indent:0;max-width:100%}
footer{padding-block:3rem;font-size:.88rem;color:var(--quiet)}
@media print{body{background:#fff}nav,.tools,th button::after{display:none}section{break-inside:auto}.portrait,figure,tr{break-inside:avoid}.scroll{overflow:visible}}
"""

SCRIPT = """
(() => {
  const say = document.getElementById('said');
  for (const table of document.querySelectorAll('table.sortable')) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => head.querySelector('button')?.addEventListener('click', () => {
      const numeric = head.classList.contains('n'), before = head.getAttribute('aria-sort');
      const down = before ? before === 'ascending' : numeric;
      const value = row => row.cells[column].dataset.v;
      const compare = numeric ? (a, b) => value(a) - value(b) : (a, b) => value(a).localeCompare(value(b));
      const rows = [...body.rows];
      const known = rows.filter(row => value(row) !== '').sort((a, b) => down ? compare(b, a) : compare(a, b));
      body.append(...known, ...rows.filter(row => value(row) === ''));
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      say.textContent = 'Sorted by ' + head.textContent.trim() + ', ' + (down ? 'descending' : 'ascending');
    }));
  }
  const all = document.querySelectorAll('details.portrait');
  for (const button of document.querySelectorAll('[data-details]'))
    button.addEventListener('click', () => all.forEach(one => { one.open = button.dataset.details === 'open'; }));
  if (matchMedia('(max-width: 32rem)').matches) [...all].slice(1).forEach(one => { one.open = false; });    // else a phone scrolls for ever
  const reveal = () => {
    const found = location.hash && document.getElementById(location.hash.slice(1));
    if (found && found.matches('details')) { found.open = true; found.scrollIntoView(); }
  };
  addEventListener('hashchange', reveal);
  reveal();
  addEventListener('beforeprint', () => document.querySelectorAll('details').forEach(one => { one.open = true; }));
})();
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><p class="kicker">{kicker}</p><h1>{heading}</h1><p class="lead">{lead}</p><nav aria-label="Sections">{nav}</nav></header>
<main>{sections}</main>
<footer>This page is one file and asks the network for nothing. The figures in it are from the CSV and JSON files beside it.</footer>
<p id="said" class="sr" role="status"></p>
<script>{script}</script>
</body>
</html>
"""

if __name__ == "__main__":
    run(main)
