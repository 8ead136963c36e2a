"""Small codecs of transformers, one of each type, with seeded weights whose codes vary."""

import copy

import pytest
import torch

from tests.conftest import speech_like
from tokenizer.torchaudio_import import import_torchaudio

import_torchaudio()  # before transformers, which some of whose models import it
transformers = pytest.importorskip("transformers")  # skips the tests that import this room

_DAC = {"encoder_hidden_size": 4, "decoder_hidden_size": 16, "codebook_size": 16, "codebook_dim": 4}
_SEANET = {"num_filters": 4, "upsampling_ratios": [4, 2], "codebook_size": 16, "codebook_dim": 8}
_TRANSFORMER = {"intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
_HUBERT = {
    **_TRANSFORMER,
    "hidden_size": 16,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}


def xcodec(ratios, **hubert):
    """X-Codec and its descendants: DAC's networks beside HuBERT's, at one frame rate."""
    return {
        "codebook_size": 16,
        "acoustic_model_config": {**_DAC, "hidden_size": 8, "downsampling_ratios": ratios, "upsampling_ratios": ratios},
        "semantic_model_config": {**_HUBERT, **hubert},
    }


CONFIGS = {
    "dac": {**_DAC, "downsampling_ratios": [2, 4], "n_codebooks": 3, "sampling_rate": 24000},
    "encodec": {**_SEANET, "hidden_size": 8, "num_lstm_layers": 1, "target_bandwidths": [12.0, 48.0]},
    "higgs_audio_v2_tokenizer": {**xcodec([8, 5, 4, 6], conv_dim=[4] * 7), "target_bandwidths": [0.1, 0.4]},
    "mimi": {
        **_SEANET,
        **_TRANSFORMER,
        "num_key_value_heads": 2,
        "hidden_size": 16,
        "num_quantizers": 4,
        "vector_quantization_hidden_dimension": 8,
        "upsample_groups": 16,
        "sliding_window": 8,
    },
    "xcodec": {
        **xcodec([4, 4], conv_dim=[8, 8], conv_kernel=[8, 4], conv_stride=[4, 4], num_feat_extract_layers=2),
        "target_bandwidths": [8, 16],
    },
    "xcodec2": {
        **_TRANSFORMER,
        "num_key_value_heads": 2,
        "hidden_size": 64,
        "head_dim": 32,
        "encoder_hidden_size": 2,
        "downsampling_ratios": [2, 4, 4, 10],
        "quantization_dim": 96,
        "quantization_levels": [4, 4],
        "semantic_model_config": {
            **_TRANSFORMER,
            "hidden_size": 32,
            "feature_projection_input_dim": 160,
            "num_hidden_layers": 1,
        },
    },
}


def fit_codebooks(model, waveform):
    """Entries become what the levels hear on their way, so that codes vary."""
    books = [m for m in model.modules() if "embed" in m._buffers or "embed_sum" in m._buffers]
    for book in books:

        def encode(hidden, book=book):
            buffers = book._buffers
            entries = buffers["embed" if "embed" in buffers else "embed_sum"]
            flat = hidden.reshape(-1, entries.shape[1])
            entries.copy_(flat[torch.randperm(len(flat))[: len(entries)]])
            if "_embed" in vars(book):
                book._embed = None
            return type(book).encode(book, hidden)

        book.encode = encode
    encode_with_model(model, waveform)
    for book in books:
        del book.encode


def fit_grid(model, waveform):
    """X-Codec 2 rounds to a grid: what it hears must fill it."""
    projection, heard = model.quantizer.project_in, []
    hook = projection.register_forward_hook(lambda _, __, output: heard.append(output[0]))
    encode_with_model(model, waveform)
    hook.remove()
    spread = heard[0].std(dim=0)
    projection.weight.div_(spread[:, None])
    projection.bias.sub_(heard[0].mean(dim=0)).div_(spread)


@torch.inference_mode()
def encode_with_model(model, waveform, **options):
    """Codes [1, K, T] of [1, S] as `transformers` itself gives them."""
    kind = model.config.model_type
    if kind == "encodec":
        options.setdefault("bandwidth", 48.0)
    if kind == "xcodec2":
        extract = transformers.Xcodec2FeatureExtractor(hop_length=model.config.hop_length)
        inputs = extract(waveform[0], sampling_rate=16000, return_tensors="pt")
        return model.encode(**inputs).audio_codes
    codes = model.encode(waveform[None], **options).audio_codes if options else model.encode(waveform[None]).audio_codes
    return codes[0] if kind == "encodec" else codes


def make_model(kind):
    """A tiny model with random weights, in which sound makes a difference."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(kind, **copy.deepcopy(CONFIGS[kind]))
        model = transformers.AutoModel.from_config(config).eval()
        with torch.no_grad():
            fit_codebooks(model, speech(2 * 16000))
            if kind == "xcodec2":
                fit_grid(model, speech(2 * 16000))
    return model


def speech(num_samples):
    """[1, S] of speech-like sound, loud enough to move random networks."""
    return torch.from_numpy(3 * speech_like(num_samples / 16000 + 0.01, 16000))[None, :num_samples]
