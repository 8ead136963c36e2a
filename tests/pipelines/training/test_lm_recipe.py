"""Recipes of language models: what a YAML file may say, and that they do not mix with those of codecs."""

import pytest
import yaml

from lm_head.coarse_first import CoarseFirstConfig
from lm_head.token_lm import LMConfig
from pipelines.training.lm_recipe import bundled_lm_recipes, load_lm_recipe
from pipelines.training.recipe import bundled_recipes, load_recipe
from tokenizer import load_codec


@pytest.fixture
def plain():
    """The least that a recipe says."""
    return {"name": "tiny", "schedule": {"steps": 8, "batch_size": 4}}


PAIR = {"layout": "coarse_first", "coarse": {"num_codebooks": 1}}


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


def test_the_layout_decides_what_a_model_is(plain, tmp_path):
    """One model, or a pair of them with sizes of their own."""
    plain["objective"] = {"grid_from": 1}
    plain["model"] = {"layout": "delay", "dim": 32, "num_heads": 4}
    assert loaded(plain, tmp_path).model == LMConfig(layout="delay", dim=32, num_heads=4)
    coarse, fine = {"num_codebooks": 1, "text": True}, {"num_codebooks": 4, "context_frames": 50, "text": True}
    plain["model"] = {"layout": "coarse_first", "coarse": coarse, "fine": fine, "stretch_frames": 20}
    model = loaded(plain, tmp_path).model
    assert model == CoarseFirstConfig(coarse=LMConfig(**coarse), fine=LMConfig(**fine), stretch_frames=20)
    assert (model.layout, model.text, model.num_codebooks) == ("coarse_first", True, 4)


def test_bundled_recipes_are_whole():
    """One for each kind of model; each loads, and is of the bundled codec."""
    spec, kinds = load_codec("speech_24khz").spec, set()
    for name in bundled_lm_recipes():
        recipe = load_lm_recipe(name)
        assert recipe.name == name
        assert recipe.model.codebook_size == spec.codebook_size
        assert recipe.model.num_codebooks <= spec.num_codebooks
        kinds.add((recipe.model.layout, recipe.model.text))
    assert load_lm_recipe("lm_speech_24khz").model.num_codebooks == spec.num_codebooks
    assert kinds == {("parallel", False), ("delay", False), ("coarse_first", True)}


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
        (lambda plain: plain.update(model={"text": True}), "with text has no integer form.*set grid_from to 1"),
        (lambda plain: plain.update(model={"layout": "delay"}), "'delay' has no integer form.*set grid_from to 1"),
        (lambda plain: plain.update(model=PAIR), "'coarse_first' has no integer form"),
        (lambda plain: plain.update(model=PAIR, objective={"grid_from": 1, "levels": [1, 4]}), "at least 2 levels"),
        (lambda plain: plain.update(model={"layout": "diagonal"}), "layout is one of .*'coarse_first'.*'diagonal'"),
        (lambda plain: plain.update(model={"layout": ["delay"]}), r"layout is one of .*\['delay'\]"),
        (lambda plain: plain.update(model=PAIR | {"dim": 3}), "model has no dim; it has coarse, fine, layout"),
        (
            lambda plain: plain.update(model=PAIR | {"fine": {"dims": 3}}),
            "model.fine has no dims; it has codebook_size",
        ),
        (lambda plain: plain.update(model=PAIR | {"fine": 3}), "model.fine is a mapping, not 3"),
        (lambda plain: plain.update(model=PAIR | {"coarse": {}}), "coarse model has one level"),
        (lambda plain: plain.update(model=PAIR | {"fine": {"num_codebooks": 1}}), "at least 2 levels"),
        (lambda plain: plain.update(model={"coarse": {}}), "model has no coarse; it has codebook_size"),
        (lambda plain: plain.update(model=3), "model is a mapping, not 3"),
    ],
)
def test_wrong_recipes_are_refused(plain, tmp_path, change, reason):
    """With the file and what is wrong in it."""
    change(plain)
    with pytest.raises(ValueError, match=reason):
        loaded(plain, tmp_path)
