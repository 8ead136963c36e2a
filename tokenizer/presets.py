"""The published codecs as specs: what their checkpoints hold, and what a training run can start from."""

from __future__ import annotations

from tokenizer.network_config import DacConfig, SeanetConfig
from tokenizer.spec import CodecSpec, SegmentConfig

_ENCODEC = SeanetConfig(pad_mode="reflect")

PRESETS: dict[str, CodecSpec] = {
    # EnCodec, arXiv:2210.13438, 3.1 and 4.1; padding as in the released weights
    "encodec_24khz": CodecSpec(
        family="seanet", sample_rate=24000, hop_length=320, num_codebooks=32, codebook_size=1024, network=_ENCODEC
    ),
    "encodec_48khz": CodecSpec(
        family="seanet",
        sample_rate=48000,
        channels=2,
        hop_length=320,
        num_codebooks=16,
        codebook_size=1024,
        network=SeanetConfig(pad_mode="reflect", causal=False, norm="time_group_norm"),
        segment=SegmentConfig(length=48000, stride=47520, normalize=True),
    ),
    # SoundStream, arXiv:2107.03312, 3.1 to 3.3: 24 levels are 18 kbps
    "soundstream_24khz": CodecSpec(
        family="seanet",
        sample_rate=24000,
        hop_length=320,
        num_codebooks=24,
        codebook_size=1024,
        network=SeanetConfig(
            latent_kernel_size=3,
            residual_kernel_size=7,
            num_residual_layers=3,
            dilation_base=3,
            compress=1,
            conv_shortcut=False,
            num_lstm_layers=0,
        ),
    ),
    # DAC, arXiv:2306.06546, appendix; rates and levels as released
    "dac_16khz": CodecSpec(
        family="dac",
        sample_rate=16000,
        hop_length=320,
        num_codebooks=12,
        codebook_size=1024,
        latent_dim=1024,
        network=DacConfig(strides=(2, 4, 5, 8)),
    ),
    "dac_24khz": CodecSpec(
        family="dac",
        sample_rate=24000,
        hop_length=320,
        num_codebooks=32,
        codebook_size=1024,
        latent_dim=1024,
        network=DacConfig(strides=(2, 4, 5, 8)),
    ),
    "dac_44khz": CodecSpec(
        family="dac",
        sample_rate=44100,
        hop_length=512,
        num_codebooks=9,
        codebook_size=1024,
        latent_dim=1024,
        network=DacConfig(strides=(2, 4, 8, 8)),
    ),
}
