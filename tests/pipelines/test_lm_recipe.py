"""Recipes of language models: what a YAML file may say, and that they do not mix with those of codecs."""

import pytest
import yaml

from lm_head.token_lm import LMConfig
from pipelines.lm_recipe import bundled_lm_recipes, load_lm_recipe
from pipelines.recipe import bundled_recipes, load_recipe
from tokenizer import load_codec


@pytest.fixture
def plain():
    """The least that a recipe says."""
    return {"name": "tiny", "schedule": {"steps": 8, "batch_size": 4}}


def loaded(plain, folder):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain))
    return load_lm_recipe(path)


def test_what_is_not_said_is_the_paper(plain, tmp_path):
    """Sizes of the model, and crops as long as what it sees."""
    recipe = loaded(plain, tmp_path)
    assert recipe.model == LMConfig()
    assert recipe.schedule.crop_frames == recipe.model.context_frames == 262


def test_what_is_said_reaches_the_settings(plain, tmp_path):
    """Every section."""
    plain["model"] = {"dim": 32, "num_heads": 4}
    plain["objective"] = {"levels": [1, 3], "grid_from": 1}
    plain["optimizer"] = {"muon": True, "betas": [0.9, 0.95]}
    plain["held_out"] = {"share": 0.5, "utterances": 3}
    plain["schedule"]["crop_frames"] = 30
    recipe = loaded(plain, tmp_path)
    assert (recipe.model.dim, recipe.model.num_heads) == (32, 4)
    assert (recipe.objective.levels, recipe.objective.grid_from) == ((1, 3), 1.0)
    assert recipe.optimizer.betas == (0.9, 0.95)
    assert (recipe.held_out.share, recipe.held_out.utterances) == (0.5, 3)
    assert recipe.schedule.crop_frames == 30


def test_bundled_recipes_are_whole():
    """Each loads, and the one of the bundled codec has its sizes."""
    assert "lm_speech_24khz" in bundled_lm_recipes()
    for name in bundled_lm_recipes():
        assert load_lm_recipe(name).name == name
    model, spec = load_lm_recipe("lm_speech_24khz").model, load_codec("speech_24khz").spec
    assert (model.num_codebooks, model.codebook_size) == (spec.num_codebooks, spec.codebook_size)


def test_recipes_of_codecs_and_language_models_do_not_mix():
    """Neither command offers, or takes, what the other one trains."""
    assert not set(bundled_recipes()) & set(bundled_lm_recipes())
    with pytest.raises(ValueError, match=r"no recipe 'lm_speech_24khz'.*bundled ones are \[(?!.*lm_)"):
        load_recipe("lm_speech_24khz")
    with pytest.raises(ValueError, match=r"no recipe 'speech_24khz'.*lm_speech_24khz"):
        load_lm_recipe("speech_24khz")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda plain: plain.update(codec="encodec_24khz"), "codec"),
        (lambda plain: plain["schedule"].update(crop_seconds=1.0), "crop_seconds"),
        (lambda plain: plain["schedule"].update(crop_frames=0), "crop_frames"),
        (lambda plain: plain["schedule"].update(crop_frames=2.5), "crop_frames"),
        (lambda plain: plain.update(model={"dim": 31}), "31"),
        (lambda plain: plain.update(objective={"levels": []}), "levels"),
        (lambda plain: plain.update(held_out={"share": 1}), "share"),
        (lambda plain: plain.pop("schedule"), "schedule"),
        (lambda plain: plain.update(model={"text": True}), "no transcripts"),
        (lambda plain: plain.update(model={"layout": "delay"}), "set objective.grid_from to 1"),
    ],
    ids=["codec", "seconds", "none", "half", "dim", "levels", "share", "missing", "text", "layout"],
)
def test_wrong_recipes_are_refused(plain, tmp_path, change, reason):
    """With the file and what is wrong in it."""
    change(plain)
    with pytest.raises(ValueError, match=reason):
        loaded(plain, tmp_path)
