import io
import json
import re

import numpy as np
import pytest
from matplotlib.image import imread
from safetensors.numpy import save_file

from fusion_jax.checkpoints.inspection.inspect import inspect
from fusion_jax.reports import inspection_plots
from fusion_jax.reports.inspection import write_inspection
from fusion_jax.reports.inspection_tables import groups_table
from tests.reports.test_html import VOID, Checker


def models(root, count, broken=False):
    """A base and models of twelve layers, as folders."""
    generator = np.random.default_rng(0)
    names = [f"encoder.layer.{n}.weight" for n in range(12)] + ["embeddings.weight"]
    base = {name: generator.standard_normal((4, 4), np.float32) for name in names}
    folders = []
    for k in range(count + 1):
        tensors: dict[str, np.ndarray] = {
            name: array
            + np.float32(0.1 * k) * generator.standard_normal((4, 4), np.float32)
            for name, array in base.items()
        }
        if broken and k == 1:
            tensors["<extra>.weight"] = np.zeros(2, np.float32)
        folder = root / ("base" if k == 0 else f"model <{k}>")
        folder.mkdir(parents=True)
        save_file(tensors, folder / "model.safetensors")
        folders.append(folder)
    return inspect(folders[1:], folders[0])


def read(path):
    page, checker = path.read_text(), Checker()
    VOID.add("img")
    checker.feed(page)
    assert checker.open == []
    return page, " ".join("".join(checker.text).split())


def size(image):
    return imread(io.BytesIO(image)).shape[:2]


def test_all_files_are_written_and_the_page_loads_nothing(tmp_path):
    found = models(tmp_path, 3, broken=True)
    files = write_inspection(found, tmp_path / "out")
    names = ["inspect.html", "inspect.json", "cosine.png", "norms.png"]
    assert [file.name for file in files] == names
    assert {file.name for file in (tmp_path / "out").iterdir()} == set(names)
    page, text = read(files[0])
    assert page.count('src="data:image/png;base64,') == page.count("<img") == 2
    assert not re.search(r'(src|href)="(https?:)?//', page)
    assert "<extra>" not in page and "<extra>.weight" not in page.split("Models")[0]
    assert "in model <1>, not in model <2>, model <3>, the base: <extra>.weight" in text
    for title in ("Findings", "Models", "Pairs", "By layer", "Numbers"):
        assert f"<h2>{title}</h2>" in page
    record = json.loads(files[1].read_text())
    assert record["groups"][-1]["group"] == "total"
    assert record["advice"] == [line for line in record["advice"] if line in text]


def test_one_model_has_no_pairs_and_no_cosines(tmp_path):
    files = write_inspection(models(tmp_path, 1), tmp_path / "out")
    assert [file.suffix for file in files] == [".html", ".json", ".png"]
    assert "<h2>Pairs</h2>" not in files[0].read_text()


def test_other_files_of_the_folder_stay(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    found = models(tmp_path, 1)
    write_inspection(found, out)
    write_inspection(found, out)
    assert (out / "mine.txt").read_text() == "kept"
    assert not [file for file in out.iterdir() if file.name.startswith(".")]


def test_heat_maps_grow_with_rows_and_pairs(tmp_path):
    few, many = models(tmp_path / "a", 2), models(tmp_path / "b", 6)
    small, large = (size(inspection_plots.cosines(found)) for found in (few, many))
    assert small[1] < large[1]
    assert min(*small, *large) > 400


def test_heat_maps_are_the_same_each_time(tmp_path):
    found = models(tmp_path, 2)
    assert inspection_plots.norms(found) == inspection_plots.norms(found)


@pytest.mark.parametrize("same", [True, False])
def test_undefined_numbers_and_far_scales_can_be_drawn(tmp_path, same):
    found = models(tmp_path, 2)
    found.cosines[:] = np.nan
    found.relative[:] = 0 if same else [1e-6, 1.0]
    for image in (inspection_plots.cosines(found), inspection_plots.norms(found)):
        assert image is not None and np.ptp(imread(io.BytesIO(image))) > 0


def test_many_pairs_are_told_by_their_ends(tmp_path):
    few = groups_table(models(tmp_path / "a", 4))
    many = groups_table(models(tmp_path / "b", 5))
    assert "cos A·B" in few.columns and "lowest cos" not in few.columns
    assert many.columns[-3:] == ("lowest cos", "highest cos", "equal signs")
    assert all(len(row) == len(many.columns) for row in many.rows)
