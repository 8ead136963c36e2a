"""Recipes: what a YAML file may say."""

import pytest
import yaml

from pipelines.training.recipe import bundled_recipes, load_recipe
from pipelines.training.schedule import Schedule
from tests.conftest import tiny_spec
from tokenizer import load_codec
from tokenizer.presets import PRESETS


@pytest.fixture
def plain():
    """The least that a recipe says."""
    return {
        "name": "tiny",
        "codec": tiny_spec("patch").to_dict(),
        "schedule": {"steps": 8, "batch_size": 4},
    }


def loaded(plain, folder):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain))
    return load_recipe(path)


def test_what_is_not_said_is_the_paper(plain, tmp_path):
    """EnCodec's weights, windows, rates and mixtures."""
    recipe = loaded(plain, tmp_path)
    objective = recipe.objective
    assert (objective.time_weight, objective.mel_weight) == (0.1, 1.0)
    assert (objective.adversarial_weight, objective.feature_weight) == (3.0, 3.0)
    assert objective.balanced
    assert objective.mel.windows == tuple(2**power for power in range(5, 12))
    assert recipe.optimizer.learning_rate == 3e-4
    assert recipe.data.sampling.one_music == 0.32


def test_what_is_said_reaches_the_settings(plain, tmp_path):
    """Sections inside sections, whole numbers where decimals are meant, lists, nothing at all."""
    plain["objective"] = {"time_weight": 3, "discriminator": None, "mel": {"windows": [64], "bins": 8}}
    plain["optimizer"] = {"betas": [0.8, 0.99], "muon": True}
    recipe = loaded(plain, tmp_path)
    assert recipe.objective.time_weight == 3.0
    assert recipe.objective.discriminator is None
    assert recipe.objective.mel.windows == (64,)
    assert recipe.optimizer.betas == (0.8, 0.99)


def test_a_codec_can_be_named(plain, tmp_path):
    """The published ones need no spec."""
    assert loaded(plain | {"codec": "encodec_24khz"}, tmp_path).codec == PRESETS["encodec_24khz"]


def test_bundled_recipes_are_whole():
    """Each loads, and the one of the bundled codec describes it."""
    expected = {"dac_24khz", "encodec_24khz", "encodec_48khz", "soundstream_24khz", "speech_24khz"}
    assert set(bundled_recipes()) >= expected
    for name in bundled_recipes():
        assert load_recipe(name).name == name
    assert load_recipe("speech_24khz").codec == load_codec("speech_24khz").spec
    for name in expected - {"speech_24khz"}:
        assert load_recipe(name).codec == PRESETS[name]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda plain: plain.update(optimiser={}), "optimiser"),
        (lambda plain: plain["schedule"].update(step=3), "step"),
        (lambda plain: plain["schedule"].update(batch_size=0), "batch_size"),
        (lambda plain: plain["schedule"].update(batch_size="many"), "batch_size"),
        (lambda plain: plain["schedule"].update(precision="float8"), "float8"),
        (lambda plain: plain["schedule"].update(checkpoint_every=30, log_every=25), "multiple"),
        (lambda plain: plain.pop("codec"), "codec"),
        (lambda plain: plain["codec"].update(hop_length=2), "hop_length"),
        (lambda plain: plain.update(objective={"mel": {"window": [64]}}), r"objective\.mel has no window"),
        (lambda plain: plain.update(objective={"mel_weight": "much"}), "much"),
        (lambda plain: plain.update(data={"sampling": {"one": 0.5}}), "add up"),
        (lambda plain: plain.update(schedule=[1]), "mapping"),
    ],
    ids=[
        "section", "key", "value", "type", "precision", "rows", "missing", "codec", "nested", "word", "shares", "list",
    ],
)  # fmt: skip
def test_wrong_recipes_are_refused(plain, tmp_path, change, reason):
    """With the file and what is wrong in it."""
    change(plain)
    with pytest.raises(ValueError, match=reason):
        loaded(plain, tmp_path)


def test_a_recipe_that_does_not_exist_is_refused():
    """With those that do."""
    with pytest.raises(ValueError, match=r"no recipe 'speech'.*speech_24khz"):
        load_recipe("speech")


def test_the_rate_rises_holds_and_falls():
    """Linear up, a plateau that does not know the end, down to nothing at the last step."""
    schedule = Schedule(steps=100, batch_size=1, warmup_steps=10, decay_steps=20)
    factors = [schedule.rate_factor(step) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10:81] == [1.0] * 71
    assert factors[80:] == sorted(factors[80:], reverse=True)
    assert factors[100] == 0.0
    assert schedule.lasting(10).decay_steps == 10
