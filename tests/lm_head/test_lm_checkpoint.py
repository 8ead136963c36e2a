"""Token language models on disk: what is saved is what is loaded, and damage is told."""

import json

import pytest
import torch

from lm_head import load_coder, load_lm
from lm_head.lm_checkpoint import LMCard, read_lm_card, save_lm
from lm_head.lm_training import calibrated_steps
from lm_head.token_lm import LMConfig, TokenLM
from tokenizer import CheckpointError

CONFIG = LMConfig(
    num_codebooks=2, codebook_size=16, dim=16, num_layers=1, num_heads=2, hidden_dim=32, context_frames=12
)
CARD = LMCard("tiny", {"name": "tiny codec", "sha256": "00" * 32})


def make_lm():
    torch.manual_seed(0)
    return TokenLM(CONFIG).eval()


def some_codes():
    return torch.randint(0, 16, (4, 2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def integer_dir(tmp_path):
    lm = make_lm()
    save_lm(lm, tmp_path / "lm", CARD, calibrated_steps(lm, some_codes()))
    return tmp_path / "lm"


@torch.inference_mode()  # with gradients torch may multiply in another order
def test_floating_point_models_come_back_bit_for_bit(tmp_path):
    lm = make_lm()
    save_lm(lm, tmp_path / "lm", CARD)
    assert torch.equal(load_lm(tmp_path / "lm")(some_codes()), lm(some_codes()))
    assert read_lm_card(tmp_path / "lm") == CARD


def test_integer_models_come_back_as_coders_and_as_models(integer_dir):
    coder, lm = load_coder(integer_dir), load_lm(integer_dir)
    block = some_codes()[0].numpy().astype("uint16")
    assert (coder.decode(coder.encode([block]), 2, [20])[0] == block).all()
    assert coder.identity == load_coder(integer_dir).identity
    torch.testing.assert_close(lm(some_codes()), make_lm()(some_codes()), atol=0.1, rtol=0)


def test_a_model_in_floating_point_is_no_coder(tmp_path):
    save_lm(make_lm(), tmp_path / "lm", CARD)
    with pytest.raises(CheckpointError, match="floating point"):
        load_coder(tmp_path / "lm")


def test_one_changed_weight_is_noticed(integer_dir):
    """The answer to the known question changes with the weights."""
    path = integer_dir / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x40
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError):
        load_coder(integer_dir)


def _edit(directory, change):
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(format=2),
        lambda config: config.update(form="words"),
        lambda config: config["model"].update(dim=17),
        lambda config: config["model"].update(dim=32),
        lambda config: config["model"].update(num_heds=2),
        lambda config: config.pop("model"),
        lambda config: config.update(model=[1]),
        lambda config: config.update(known_answer="0" * 64),
        lambda config: config.pop("known_answer"),
    ],
)
def test_configs_that_are_wrong_are_refused(integer_dir, change):
    _edit(integer_dir, change)
    with pytest.raises(CheckpointError):
        load_coder(integer_dir)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b""], ids=["cut", "empty"])
def test_cut_files_are_refused(integer_dir, name, damage):
    path = integer_dir / name
    path.write_bytes(damage(path.read_bytes()))
    for load in (load_lm, load_coder):
        with pytest.raises(CheckpointError):
            load(integer_dir)


def test_unknown_names_are_told_with_what_there_is():
    with pytest.raises(CheckpointError, match="the bundled ones are"):
        load_lm("no_such_model")
