"""What a recipe's run does before its first slide."""

from pathlib import Path

import pytest

from simtriplet.pipelines.flow import run_recipe
from simtriplet.pipelines.recipe import read_recipe
from simtriplet.wsi.errors import SimTripletError, SlideOpenError

RECIPE = """# why it is so
out = "."
slides.inputs = ["none.svs"]
pretrain.preset = "quick"
"""


def test_a_recipe_that_lies_in_its_own_output_keeps_its_comments(tmp_path: Path) -> None:
    """It is called as the resolved one is, which took its place."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    with pytest.raises(SlideOpenError, match="does not exist"):
        run_recipe(read_recipe(recipe, ["tiling.mpp=1.0"]), source=recipe)
    assert recipe.read_text() == RECIPE
    with pytest.raises(SlideOpenError, match="does not exist"):
        run_recipe(read_recipe(recipe, [f"out={tmp_path}/other"]), source=recipe)
    assert "none.svs" in (tmp_path / "other" / "recipe.toml").read_text()


@pytest.mark.parametrize(
    ("assignment", "hint"),
    [
        ("evaluate.labels=none.csv", "cannot be read .No such file or directory"),
        ("evaluate.protocol=linaer", "is not known; did you mean 'linear'"),
        ("index.name=../x", "index name '../x': must be letters"),
        ("index.rule=ring", "needs a distance"),
        ("pretrain.model.weights=none.pth", "is no file; correct it, or leave it out"),
    ],
)
def test_what_would_end_a_run_after_its_training_is_refused_before(tmp_path: Path, assignment: str, hint: str) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.replace('"."', '"out"'))
    with pytest.raises(SimTripletError, match=hint):
        run_recipe(read_recipe(recipe, [assignment]))
    assert not (tmp_path / "out").exists()
