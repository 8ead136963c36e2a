"""Weight norm of checkpoints: folded as torch does it, and with the same bits in whatever order a machine adds."""

import pytest
import torch

from tokenizer.folded_weights import HOOK_SPELLING, PARAMETRIZED_SPELLING, fold, split


@pytest.mark.parametrize("spelling", [HOOK_SPELLING, PARAMETRIZED_SPELLING], ids=["hooks", "parametrizations"])
def test_folding_is_torchs_up_to_rounding(spelling):
    """Both spellings, rows of any size."""
    torch.manual_seed(0)
    direction = torch.randn(20, 64, 7) * torch.logspace(-6, 6, 20)[:, None, None]
    length = torch.rand(20, 1, 1) + 0.1
    folded = fold({f"layer{spelling[0]}": length, f"layer{spelling[1]}": direction})
    expected = torch._weight_norm(direction, length, 0)
    torch.testing.assert_close(folded["layer.weight"], expected, rtol=3e-7, atol=0)


def test_folding_does_not_depend_on_the_order_of_addition():
    """Columns permuted and permuted back: not a bit differs, as on a processor that adds in another order."""
    torch.manual_seed(0)
    direction, length = torch.randn(50, 300, 7), torch.rand(50, 1, 1) + 0.1
    order = torch.randperm(300)
    folded = fold({"a.weight_g": length, "a.weight_v": direction})["a.weight"]
    permuted = fold({"a.weight_g": length, "a.weight_v": direction[:, order]})["a.weight"]
    assert torch.equal(permuted, folded[:, order])


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_splitting_is_undone_exactly(scale):
    """Weight to length and direction and back, to the bit; rows of zeros, too."""
    torch.manual_seed(0)
    weight = torch.randn(1000, 16, 3) * scale
    weight[7] = 0.0
    parted = split({"a.weight": weight}, ["a.weight"], HOOK_SPELLING)
    assert torch.equal(fold(parted)["a.weight"], weight)
    assert torch.isfinite(parted["a.weight_g"]).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(bad):
    """For the check that refuses it: it must not be rounded into a number."""
    direction = torch.ones(2, 3, 1)
    direction[1, 1] = bad
    folded = fold({"a.weight_g": torch.ones(2, 1, 1), "a.weight_v": direction})["a.weight"]
    assert torch.equal(folded[0], torch.full((3, 1), 3**-0.5))
    assert not torch.isfinite(folded[1]).all()
