"""Codebooks while they are learned."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.conftest import tiny_spec
from tests.tokenizer.process_group import run_in_processes
from tokenizer.networks import build_networks
from tokenizer.quantizer_training import QuantizerTraining, TrainableQuantizer, codebook_use

SPEC = tiny_spec("patch")  # K 4, V 16


def learned(spec=SPEC, settings=None, batches=20):
    """A quantizer that has seen batches of the same distribution."""
    torch.manual_seed(0)
    quantizer = TrainableQuantizer(spec, settings or QuantizerTraining()).train()
    for batch in range(batches):
        torch.manual_seed(batch)
        quantizer(torch.randn(4, spec.latent_dim, 25), spec.num_codebooks)
    return quantizer


def counts_and_entries(quantizer, level=0):
    """Moving averages of use, and the entries, of one level."""
    codebook = quantizer.layers[level]._codebook
    return codebook.cluster_size[0], codebook.embed[0]


@pytest.mark.parametrize("kind", ["patch", "dac"])
def test_what_is_exported_finds_the_same_codes(kind):
    """Entries and projections go over as they are: the inference form chooses what training chose."""
    spec = tiny_spec(kind)
    quantizer = learned(spec).eval()
    exported = build_networks(spec).quantizer
    quantizer.copy_into(exported)
    latents = torch.randn(2, spec.latent_dim, 30)
    with torch.no_grad():
        quantized = quantizer(latents, 3)
    assert torch.equal(exported.encode(latents, 3), quantized.codes)
    torch.testing.assert_close(exported.decode(quantized.codes), quantized.latents, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["patch", "dac"])
def test_training_goes_on_from_an_exported_quantizer(kind):
    """There and back: the same codes before anything new is learned."""
    spec = tiny_spec(kind)
    exported, latents = build_networks(spec).quantizer, torch.randn(2, spec.latent_dim, 30)
    learned(spec).copy_into(exported)
    resumed = TrainableQuantizer(spec, QuantizerTraining()).eval()
    resumed.start_from(exported)
    with torch.no_grad():
        assert torch.equal(resumed(latents, 4).codes, exported.encode(latents, 4))


@pytest.mark.parametrize("num_codebooks", [1, 2, 4])
def test_the_gradient_passes_once(num_codebooks):
    """Straight through, as if nothing had been quantized, however many levels there are."""
    quantizer, latents = learned(), torch.randn(2, SPEC.latent_dim, 10, requires_grad=True)
    weights = torch.randn(2, SPEC.latent_dim, 10)
    (quantizer(latents, num_codebooks).latents * weights).sum().backward()
    torch.testing.assert_close(latents.grad, weights)


def test_the_commitment_pulls_towards_the_entries():
    """A step against its gradient leaves less to quantize."""
    quantizer, latents = learned().eval(), torch.randn(2, SPEC.latent_dim, 10, requires_grad=True)
    quantizer.train()
    for layer in quantizer.layers:
        layer.freeze_codebook = True
    before = quantizer(latents, 2)
    before.commitment.backward()
    after = quantizer(latents.detach() - 0.5 * latents.grad, 2)
    assert after.commitment < before.commitment


def test_an_entry_that_nothing_uses_is_replaced_and_stays():
    """An entry far from all data becomes a vector of the batch, and is no longer at its old place a batch later."""
    quantizer = learned()
    codebook = quantizer.layers[0]._codebook
    codebook.embed[0, 3] = 100.0
    codebook.embed_avg[0, 3] = 0.0
    codebook.cluster_size[0, 3] = 0.0
    quantizer(torch.randn(4, SPEC.latent_dim, 25), 1)
    replaced = counts_and_entries(quantizer)[1][3].clone()
    assert replaced.abs().max() < 6  # among the data again
    quantizer(torch.randn(4, SPEC.latent_dim, 25), 1)
    assert (counts_and_entries(quantizer)[1][3] - replaced).norm() < 0.3 * replaced.norm()


def test_a_replacement_has_time_to_find_its_place():
    """It starts with the use of the average entry: batches that leave it aside do not replace it again at once."""
    quantizer = learned()
    codebook = quantizer.layers[0]._codebook
    codebook.embed[0, 3], codebook.embed_avg[0, 3], codebook.cluster_size[0, 3] = 100.0, 0.0, 0.0
    quantizer(torch.randn(4, SPEC.latent_dim, 25), 1)
    use, _ = counts_and_entries(quantizer)
    assert use[3] == pytest.approx(float(use.sum() - use[3]) / (SPEC.codebook_size - 1), rel=0.15)


@pytest.mark.parametrize("frames", [4, 400])
def test_use_is_judged_relative_to_the_batch(frames):
    """Evenly used codebooks keep all entries, however small the batches are."""
    torch.manual_seed(0)
    spec = dataclasses.replace(SPEC, num_codebooks=1)
    quantizer = TrainableQuantizer(spec, QuantizerTraining()).train()
    entries = 3 * torch.randn(spec.codebook_size, spec.latent_dim)
    inference = build_networks(spec).quantizer
    inference.set_codebooks(entries[None])
    quantizer.start_from(inference)
    for _ in range(60):
        chosen = entries[torch.randint(len(entries), (4, frames))] + 0.01 * torch.randn(4, frames, spec.latent_dim)
        quantizer(chosen.transpose(1, 2), 1)
    _, kept = counts_and_entries(quantizer)
    assert (kept - entries).norm(dim=1).max() < 0.5


def test_bandwidths_are_drawn_evenly():
    """One model serves them all because each batch stops at the levels of one of them."""
    quantizer, generator = TrainableQuantizer(SPEC, QuantizerTraining()), torch.Generator().manual_seed(0)
    drawn = [quantizer.draw_num_codebooks(generator) for _ in range(400)]
    assert set(drawn) == {2, 4}
    assert 160 < drawn.count(2) < 240
    assert TrainableQuantizer(SPEC, QuantizerTraining(dropout=False)).draw_num_codebooks(generator) == 4


def test_use_of_codebooks_is_counted():
    """Shares and perplexities by their definition: a level of two equally frequent entries, and one of a single one."""
    codes = torch.tensor([[[0, 1, 0, 1], [5, 5, 5, 5]]])
    shares, perplexities = codebook_use(codes, 16)
    assert shares == [2 / 16, 1 / 16]
    assert perplexities == pytest.approx([2.0, 1.0])


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"kmeans_iterations": 0}, {"dead_share": -0.1}], ids=str)
def test_wrong_settings_are_refused(wrong):
    """At the door."""
    with pytest.raises(ValueError, match="decay"):
        QuantizerTraining(**wrong)


def share_of_batches(rank, count):
    """Three batches through a fresh quantizer, each process with its rows; the first one starts by k-means."""
    quantizer = TrainableQuantizer(SPEC, QuantizerTraining(dead_share=0.5)).train()
    for batch in range(3):
        latents = torch.randn(4, SPEC.latent_dim, 25, generator=torch.Generator().manual_seed(batch))
        rows = len(latents) // count
        torch.manual_seed(batch)
        quantizer(latents[rank * rows : (rank + 1) * rows], 2)
    return {name: value.detach() for name, value in quantizer.layers[:2].named_buffers()}


def test_processes_learn_the_codebooks_that_one_would():
    """Two processes with half of each batch end with equal buffers, and with those of one process with all of it."""
    both = run_in_processes(share_of_batches, 2, 2)
    alone = share_of_batches(0, 1)
    for name, value in alone.items():
        np.testing.assert_array_equal(both[0][name], both[1][name])
        np.testing.assert_allclose(both[0][name], value.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_young_codebook_follows_latents_that_move():
    """An untrained encoder moves far in a few steps: the entries come along, and few are left behind."""
    torch.manual_seed(0)
    quantizer = TrainableQuantizer(dataclasses.replace(SPEC, num_codebooks=1), QuantizerTraining()).train()
    for batch in range(30):
        latents = torch.randn(4, SPEC.latent_dim, 25) + 0.1 * batch
        codes = quantizer(latents, 1).codes
    shares, _ = codebook_use(codes, SPEC.codebook_size)
    assert shares[0] > 0.5
