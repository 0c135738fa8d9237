"""The pictures of docs/figures: each has a script and a page that shows it, and says what its data say.

The models of two of them are not trained again here: loss-stages.csv has the losses of one, and the other is read as drawn.
"""

import importlib
import json
import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from paths import ROOT

FOLDER = ROOT / "docs" / "figures"
sys.path.insert(0, str(FOLDER))

PICTURES = sorted(path.name for path in FOLDER.glob("*.svg"))
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
MOST_BYTES = 60 * 1024
SVG = "{http://www.w3.org/2000/svg}"
every_picture = pytest.mark.parametrize("name", PICTURES)


def script_of(name: str) -> str:
    return name.removesuffix(".svg").replace("-", "_")


def source(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def script(name: str):
    """Return the module that draws a picture."""
    return importlib.import_module(script_of(name))


def texts(svg: str) -> list[str]:
    return ["".join(text.itertext()).strip() for text in ElementTree.fromstring(svg).iter(SVG + "text")]


def places(svg: str, prefix: str) -> dict[str, np.ndarray]:
    """Return the corners, in points, of each shape whose id has this prefix."""
    found = {}
    for group in ElementTree.fromstring(svg).iter(SVG + "g"):
        if group.get("id", "").startswith(prefix):
            corners = re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", group.find(SVG + "path").get("d"))
            found[group.get("id")] = np.array(corners, float)
    return found


# ---- every picture ----


def test_a_script_draws_each_and_make_runs_it():
    scripts = {path.stem for path in FOLDER.glob("*.py")} - {"look"}
    assert {script_of(name) for name in PICTURES} == scripts
    target = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nfigures:")[2].partition("\n\n")[0]
    assert set(re.findall(r"\b[a-z]+_[a-z_]+\b", target)) == scripts


@every_picture
def test_a_page_shows_it_and_says_what_it_is(name):
    found = []
    for page in PAGES:
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            if (page.parent / target).resolve() == FOLDER / name:
                found.append(words)
    assert found
    assert [words for words in found if len(words.split()) < 5] == []


@every_picture
def test_it_is_small_and_needs_no_other_file(name):
    text = source(name)
    assert len(text.encode()) < MOST_BYTES
    assert not re.search(r"<script|<image|@import|href=\"(?!#)|url\((?!#)", text)


@every_picture
def test_it_says_what_it_is(name):
    root = ElementTree.fromstring(source(name))
    assert [child.tag for child in root[:2]] == [SVG + "title", SVG + "desc"]
    assert len(root[0].text.split()) >= 4
    assert len(root[1].text.split()) >= 15
    assert root.get("role") == "img"


@every_picture
def test_its_background_is_white(name):
    """Also on a dark page. The first shape covers the picture."""
    root = ElementTree.fromstring(source(name))
    shape = next(element for element in root.iter() if element.tag in (SVG + "path", SVG + "rect"))
    assert re.search(r"#fff(fff)?\b", shape.get("fill", "") + shape.get("style", ""))
    size = np.array(root.get("viewBox").split()[2:], float)
    if shape.tag == SVG + "rect":
        covered = np.array([shape.get("width"), shape.get("height")], float)
    else:
        covered = np.ptp(np.array(re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", shape.get("d")), float), axis=0)
    np.testing.assert_array_equal(covered, size)


@every_picture
def test_every_font_has_a_fallback(name):
    root = ElementTree.fromstring(source(name))
    parents = {child: parent for parent in root.iter() for child in parent}
    for text in root.iter(SVG + "text"):
        element, font = text, None
        while font is None:
            font = re.search(r"font(?:-family)?: [^;]*", element.get("style", ""))
            font = font.group() if font else element.get("font-family")
            element = parents.get(element) if font is None else element
            assert element is not None, "".join(text.itertext())
        assert font.endswith((", sans-serif", ", monospace"))


# ---- each picture says what its data say ----


def test_the_flow_of_attention_is_drawn_again():
    picture = script("attention-backward.svg")
    assert picture.draw() == source(picture.PICTURE), "run make figures"


def test_the_flow_of_attention_follows_the_derivation():
    """Each gradient of a step is derived in this step, and each shape is that of the code."""
    picture = script("attention-backward.svg")
    code = (ROOT / "tensorlite" / "reference" / "attention.py").read_text(encoding="utf-8").partition("def attention_backward")[2]
    assert {name for name, _ in picture.STEPS} == set(picture.GRADIENTS) - {"dy", "dqkv"}
    for gradient, step in picture.STEPS:
        assert re.search(rf"^      {step}\. .*\b{gradient} = ", code, re.MULTILINE)
        line = re.search(rf"^    {gradient} = .*# {step}\. (.*)", code, re.MULTILINE).group(1)
        assert line.endswith(picture.place(gradient).shape)
    for name, _, (_, *_, (x, y)) in picture.READS:
        gradient, _ = next(key for key, at in picture.STEPS.items() if at == y and picture.place(key[0]).x == x)
        assert re.search(rf"\b{name}(ᵀ|\b)", picture.GRADIENTS[gradient])


def test_time_and_memory_are_the_results():
    picture = script("time-and-memory.svg")
    file, drawn = source(picture.PICTURE), picture.draw(picture.section())
    assert texts(file) == texts(drawn), "run make figures"
    for kind in ("time", "memory"):
        bars, expected = places(file, kind), places(drawn, kind)
        assert len(bars) == 8
        np.testing.assert_allclose(list(bars.values()), list(expected.values()), atol=0.01)
    rows = picture.rows(picture.section(), "laptop")
    widths = [np.ptp(bar[:, 0]) for bar in places(file, "time-laptop").values()]
    np.testing.assert_allclose(
        np.divide(widths, widths[0]), [m.median / rows["fast, 2 threads"].median for m in rows.values()], rtol=1e-4
    )


def test_errors_of_the_numerical_gradients():
    """Rounding differs between processors: by less than a third of a power of ten in a mean over 32 entries."""
    picture = script("gradcheck-step.svg")
    file, drawn = source(picture.PICTURE), picture.draw(picture.errors())
    assert texts(file) == texts(drawn)
    shown, expected = places(file, "c"), places(drawn, "c")
    assert set(shown) == set(expected) == {"complex", "central-2", "central-4", "central-6"}
    for curve, points in shown.items():
        np.testing.assert_allclose(points, expected[curve], atol=5, err_msg="run make figures")  # 15 points are a power of ten


def test_the_powers_of_the_step():
    """What the picture and its description say, of the errors themselves."""
    curves = {name: dict(curve) for name, curve in script("gradcheck-step.svg").errors().items()}
    for n, h in ((2, 1e-2), (4, 1e-2), (6, 1e-1)):
        curve = np.array(list(curves[f"central-{n}"].items()))
        i = np.abs(np.log(curve[:, 0] / h)).argmin()
        power = np.log(curve[i, 1] / curve[i - 1, 1]) / np.log(curve[i, 0] / curve[i - 1, 0])
        assert abs(power - n) < 0.2
    for n, least in ((2, 5e-11), (4, 6e-13), (6, 3e-13)):
        assert least / 4 < min(curves[f"central-{n}"].values()) < least * 4
    assert max(error for h, error in curves["complex"].items() if h < 1e-8) < 1e-15


def test_losses_of_the_stages():
    """They are drawn from their file, and agree with the README's, the worst of three seeds."""
    picture = script("loss-stages.svg")
    curves = picture.read_table()
    file, drawn = source(picture.PICTURE), picture.draw(curves)
    assert texts(file) == texts(drawn), "run make figures"
    shown, expected = places(file, "curve-"), places(drawn, "curve-")
    for stage in curves:
        np.testing.assert_allclose(shown[f"curve-{stage}"], expected[f"curve-{stage}"], atol=0.01)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for stage, curve in curves.items():
        lecture, worst = re.search(rf"^\| `{stage}` \|.*\| ([\d.]+) \| ([\d.]+) \|$", readme, re.MULTILINE).groups()
        assert float(worst) - 0.03 < curve[-1][1] < float(worst) + 0.001
        assert lecture in texts(file)


def test_losses_of_the_full_model(monkeypatch, tmp_path):
    """They are drawn from their file, whose best loss is the one that docs/training.md reports."""
    picture = script("loss-full-model.svg")
    records = picture.read_table()
    file, drawn = source(picture.PICTURE), picture.draw(records)
    assert texts(file) == texts(drawn), "run make figures"
    shown, expected = places(file, "curve-"), places(drawn, "curve-")
    assert len(shown) == 2
    for name in shown:
        np.testing.assert_allclose(shown[name], expected[name], atol=0.01)
    best = picture.best(records)
    assert best["val_loss"] <= 1.48
    assert f"{best['val_loss']:.4f}" in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    monkeypatch.setattr(picture, "DATA", tmp_path / "again.csv")
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(record | {'lr': 0.1})}\n" for record in records))
    picture.write_table(picture.read_run(tmp_path))
    assert picture.read_table() == records


def test_labels_are_moved_apart_as_little_as_it_takes():
    spread, gap = script("loss-stages.svg").spread, script("loss-stages.svg").LEAST_GAP
    assert spread([3.0, 2.0]) == [3.0, 2.0]
    np.testing.assert_allclose(spread([2.0, 2.0]), [2 + gap / 2, 2 - gap / 2])
    assert np.diff(spread([2.51, 2.5, 2.49, 2.0])).max() < -gap + 1e-6


def weights() -> np.ndarray:
    """Return the weights of attention-maps.svg as drawn: (L * H, T, T)."""
    picture = script("attention-maps.svg")
    shades = {picture.color(i): i / picture.SHADES for i in range(picture.SHADES + 1)}
    T = len(picture.TEXT)
    found = []
    for group in ElementTree.fromstring(source(picture.PICTURE)).iter(SVG + "g"):
        if not group.get("transform", "").startswith("scale"):
            continue
        found.append(np.zeros((T, T)))
        for path in group:
            for s, t in re.findall(r"M(\d+) (\d+)h1v1h-1z", path.get("d")):
                found[-1][int(t), int(s)] = shades[path.get("fill")]
    return np.array(found)


def test_attention_maps_are_causal_and_add_up():
    maps = weights()
    assert len(maps) == 16
    assert not np.triu(maps, 1).any()
    np.testing.assert_allclose(maps.sum(axis=-1), 1, atol=0.2)  # rounded to the shades
    assert abs(maps.sum(axis=-1).mean() - 1) < 0.02


def test_attention_maps_show_what_chapter_9_says():
    text = script("attention-maps.svg").TEXT
    maps = weights()
    layer_1_head_1, layer_3_head_3 = maps[0], maps[2 * 4 + 2]
    assert np.diagonal(layer_1_head_1, -1).mean() > 0.8  # the character before
    spaces = [s for s, character in enumerate(text) if character == " "]
    assert layer_3_head_3[spaces[0] :, spaces].sum(axis=1).mean() > 0.7
