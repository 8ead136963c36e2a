"""Small models of the `encodec` package with seeded random weights: what its files are written and read with."""

import torch

from tests.tokenizer.reference_models import fitted_codebooks, import_encodec, randomize

CONTEXT_FRAMES = {"encodec_24khz": 262, "encodec_48khz": 525}


def original_lm(num_codebooks=4, codebook_size=1024, *, context_frames=262, dim=16, num_layers=2, seed=0):
    """Its language model, with heads sharp enough that some codes are a thousand times as likely as others."""
    import_encodec()
    from encodec.model import LMModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lm = LMModel(num_codebooks, codebook_size, dim, num_layers=num_layers, past_context=context_frames).eval()
        with torch.no_grad():
            for name, parameter in lm.named_parameters():
                if name.startswith("linears"):
                    parameter.mul_(6.0)
                elif "norm" in name or name.endswith("bias"):
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return lm.requires_grad_(requires_grad=False)


def original_codec(name, num_codebooks=8):
    """Its codec, as long in samples and frames as the released one of that name, but thin."""
    encodec = import_encodec()
    from encodec.modules import SEANetDecoder, SEANetEncoder
    from encodec.quantization import ResidualVectorQuantizer

    grouped = name == "encodec_48khz"
    sizes = {
        "channels": 2 if grouped else 1,
        "dimension": 8,
        "n_filters": 2,
        "lstm": 1,
        "norm": "time_group_norm" if grouped else "weight_norm",
        "causal": not grouped,
    }
    rate = 48000 if grouped else 24000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder, decoder = SEANetEncoder(**sizes), SEANetDecoder(**sizes)
        quantizer = ResidualVectorQuantizer(dimension=8, n_q=num_codebooks, bins=1024)
    bandwidths = [rate // 320 * 10 * levels / 1000 for levels in range(1, num_codebooks + 1)]
    segment = 1.0 if grouped else None
    model = encodec.EncodecModel(
        encoder, decoder, quantizer, bandwidths, rate, sizes["channels"], normalize=grouped, segment=segment, name=name
    )
    with torch.random.fork_rng():
        randomize(model).requires_grad_(requires_grad=False)
    latents = model.encoder(torch.randn(200, sizes["channels"], 3200, generator=torch.Generator().manual_seed(0)))
    codebooks = fitted_codebooks(latents.transpose(1, 2).flatten(0, 1), num_codebooks, 1024)
    for layer, codebook in zip(quantizer.vq.layers, codebooks, strict=True):
        layer.codebook.copy_(codebook)
    return model
