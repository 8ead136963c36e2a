"""Reference implementations with seeded random weights that code speech as trained ones do: no code is degenerate."""

import os
from pathlib import Path

import torch
from torch.nn import functional

from tokenizer import Codec, read_audio, resample
from tokenizer.quantizer import FactorizedQuantizer
from tokenizer.segments import cut, normalize
from tokenizer.torchaudio_import import import_torchaudio

DEMO_SPEECH = "pipelines/demo_speech"
OWN_SPEECH = "QUANTONE_SPEECH"  # environment variable: a folder of recordings to compare on instead


def speech(root, seconds, sample_rate, channels=1):
    """[C, S] of the bundled clips (or yours), one after another; the second channel lags behind and is softer."""
    folder = Path(os.environ.get(OWN_SPEECH, root / DEMO_SPEECH))
    clips, needed = [], int(seconds * sample_rate)
    for path in sorted(folder.glob("**/*.*")):
        if sum(clip.shape[-1] for clip in clips) >= needed:
            break
        if path.suffix in (".wav", ".flac", ".ogg", ".opus", ".mp3"):
            waveform, rate = read_audio(path)
            clips.append(resample(waveform.mean(0, keepdim=True), rate, sample_rate))
    mono = torch.cat(clips, dim=-1)[:, :needed]
    assert mono.shape[-1] == needed, "the bundled speech is too short for this test"
    return mono if channels == 1 else torch.cat([mono, 0.7 * mono.roll(500, dims=-1)])


def import_encodec():
    """The `encodec` package, which imports torchaudio."""
    import_torchaudio()
    import encodec

    return encodec


@torch.no_grad()
def randomize(model):
    """Weights under which activations keep their size from layer to layer and follow the sound more than the biases."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv1d, torch.nn.ConvTranspose1d)):
            if hasattr(module, "weight_g"):  # before torch 2.1
                module.weight_v.normal_()
                module.weight_g.fill_(1.0)
            elif hasattr(module, "parametrizations"):
                module.parametrizations.weight.original1.normal_()
                module.parametrizations.weight.original0.fill_(1.0)
            else:
                fan_in = module.weight[0].numel()
                module.weight.normal_(std=fan_in**-0.5)
            module.bias.normal_(std=0.01)
    return model.eval()


@torch.no_grad()
def fitted_codebooks(latents, num_codebooks, codebook_size, *, seed=0):
    """[K, V, D]: at each level points as spread as what is left of the latents [N, D], so that every entry is used.

    They are drawn towards the mean and blurred. Entries that are latents themselves would leave nothing but rounding
    errors to the deeper levels, and codes of those are noise in any implementation.
    """
    generator = torch.Generator().manual_seed(seed)
    residual, codebooks = latents, []
    for _ in range(num_codebooks):
        picked = residual[torch.randint(len(residual), (codebook_size,), generator=generator)]
        blur = residual.std(dim=0) * torch.randn(picked.shape, generator=generator)
        codebook = residual.mean(dim=0) + 0.3 * (picked - residual.mean(dim=0) + blur)
        residual = residual - codebook[torch.cdist(residual, codebook).argmin(dim=1)]
        codebooks.append(codebook)
    return torch.stack(codebooks)


def latents_of(codec: Codec, waveform):
    """What the codec's quantizer sees of a waveform [C, S]: [T, D]."""
    segment = codec.spec.segment
    if segment is None:
        return codec.encoder(waveform[None])[0].T
    pieces = cut([waveform[None]], segment.length, segment.stride)
    return torch.cat([codec.encoder(normalize(piece)[0])[0].T for piece in pieces])


def compared(quantizer, residual, level):
    """What is compared at a level, in float64: a point made of the residual [D], and the entries."""
    entries = quantizer.codebooks[level].double()
    if isinstance(quantizer, FactorizedQuantizer):
        residual = quantizer.in_weight[level].double() @ residual + quantizer.in_bias[level]
        return functional.normalize(residual, dim=0), functional.normalize(entries, dim=1)
    return residual, entries


def compare_codes(codec: Codec, waveform, expected, actual):
    """How many frames differ, and how many of these at a near-tie: both entries are equally far, to 1e-5.

    Args:
        codec: which gives the distances.
        waveform: [C, S] that both coded.
        expected: [K, T] of the reference.
        actual: [K, T], ours.
    """
    differing = (expected != actual).any(dim=0).nonzero()[:, 0].tolist()
    if not differing:
        return 0, 0
    latents = latents_of(codec, waveform)
    ties = 0
    for frame in differing:
        level = int((expected[:, frame] != actual[:, frame]).nonzero()[0])
        residual = latents[frame].double()
        for earlier in range(level):
            residual = residual - codec.quantizer.decode_level(actual[earlier, frame], earlier).double()
        point, entries = compared(codec.quantizer, residual, level)
        theirs, ours = ((point - entries[codes[level, frame]]).norm() for codes in (expected, actual))
        ties += bool((theirs - ours).abs() <= 1e-5 * max(theirs, ours))
    return len(differing), ties
