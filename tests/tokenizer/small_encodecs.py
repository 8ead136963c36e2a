"""Small EnCodecs of both reference libraries, with seeded random weights."""

import torch

from tokenizer.torchaudio_import import import_torchaudio

SMALL = {"hidden_size": 8, "num_filters": 4, "upsampling_ratios": [4, 2], "num_lstm_layers": 1, "codebook_size": 16}
GROUPED = {
    "sampling_rate": 48000,
    "audio_channels": 2,
    "norm_type": "time_group_norm",
    "use_causal_conv": False,
    "chunk_length_s": 1.0,
    "overlap": 0.01,
    "normalize": True,
    "target_bandwidths": [96.0],  # four levels of four bits, 6000 times a second
}
MUSICGEN = {"sampling_rate": 32000, "use_conv_shortcut": False, "use_causal_conv": False, "target_bandwidths": [64.0]}


def original_model(kind="24khz", seed=0):
    """A tiny model of the `encodec` package with random weights, both of them built as its own presets are."""
    import_torchaudio()
    from encodec import EncodecModel
    from encodec.modules import SEANetDecoder, SEANetEncoder
    from encodec.quantization import ResidualVectorQuantizer

    grouped = kind == "48khz"
    sizes = {
        "channels": 2 if grouped else 1,
        "dimension": 8,
        "n_filters": 4,
        "ratios": [4, 2],
        "lstm": 1,
        "norm": "time_group_norm" if grouped else "weight_norm",
        "causal": not grouped,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder, decoder = SEANetEncoder(**sizes), SEANetDecoder(**sizes)
        quantizer = ResidualVectorQuantizer(dimension=8, n_q=4, bins=16)
        for layer in quantizer.vq.layers:
            layer.codebook.normal_()
    return EncodecModel(encoder, decoder, quantizer, [6.0], 24000, sizes["channels"]).eval()


def transformers_model(seed=0, **changes):
    """A tiny EncodecModel of `transformers` with random weights."""
    from transformers import EncodecConfig, EncodecModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = EncodecModel(EncodecConfig(**{**SMALL, "target_bandwidths": [48.0], **changes})).eval()
        for layer in model.quantizer.layers:
            layer.codebook.embed.normal_()
    return model
