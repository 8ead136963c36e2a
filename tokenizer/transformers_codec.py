"""Codecs that only the `transformers` library has (Mimi, X-Codec, Higgs), behind the same interface as ours."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenizer import hub
from tokenizer.checkpoint_file import read_json
from tokenizer.codec import Codec
from tokenizer.config_fields import GENERIC_FIELDS
from tokenizer.errors import AudioError, CheckpointError
from tokenizer.network_config import TransformersConfig
from tokenizer.spec import CodecSpec
from tokenizer.torchaudio_import import import_torchaudio

MODEL_TYPES = ("dac", "encodec", "higgs_audio_v2_tokenizer", "mimi", "xcodec", "xcodec2")
"""Models with levels of integer codes at one frame rate. All are residual, or have one level: the first codes of many
levels are the codes of few."""

_REFUSED = {
    "neucodec": "hears at one sample rate and speaks at another",
    "pocket_tts_audio_tokenizer": "makes continuous latents, no codes",
    "vibevoice_acoustic_tokenizer": "makes continuous latents, no codes",
}
_UNUSED_WEIGHT = "masked_spec_embed"  # of HuBERT, for its training; some checkpoints lack it


class TransformersCodec(Codec):
    """A codec around a model of `transformers`. Build it with `load_codec("hf:...")`.

    It takes whole files: there are no streams, and memory grows with the length, with its square where every frame
    attends to all others. Mimi takes 25 MB for each second on a CPU: cut hours of sound into utterances before.
    Rows go through the model one at a time, never padded to each other: padding would change their codes
    (huggingface/transformers#43377).

    Args:
        spec: constants of the model.
        model: for inference.
        settings: its config, as far as it decides about codes, as JSON types.
        name: of the codec.
    """

    def __init__(self, spec: CodecSpec, model: nn.Module, settings: Mapping[str, Any], *, name: str) -> None:
        super().__init__(spec, name=name)
        self.model = model
        self._settings = dict(settings)

    @property
    def sha256(self) -> str:
        """Identity of spec, weights and the model's settings: equal codecs give equal codes."""
        settings = json.dumps(self._settings, sort_keys=True)
        return hashlib.sha256(f"{super().sha256}{settings}".encode()).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        # The modules themselves cannot be pickled: weight norm and `transformers` hang local functions on them.
        return _rebuild, (self.spec, self.model.config, self.model.state_dict(), self._settings, self.name)

    @property
    def start_frames(self) -> int:
        """0, as there are no streams."""
        return 0

    def _encode_whole(self, waveform: Tensor, num_codebooks: int) -> Tensor:
        """[B, C, S] to [B, K, T]. All levels are computed, which costs little beside the networks, and cut."""
        frames = self.spec.num_frames(waveform.shape[-1])
        codes = torch.cat([_encode(self.model, row[None], self.spec.hop_length) for row in waveform])
        if codes.shape[-1] != frames:
            raise AudioError(
                f"codec {self.name!r} gives {codes.shape[-1]} frames for {waveform.shape[-1]} samples, not {frames}"
            )
        return codes[:, :num_codebooks].to(torch.int64)

    def _decode_whole(self, codes: Tensor, num_samples: int) -> Tensor:  # noqa: ARG002 - the base class cuts and fills
        """[B, K, T] to [B, C, S]; S may miss T * hop_length by some samples."""
        return torch.cat([_decode(self.model, row[None]) for row in codes])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Weights go elsewhere: what Mimi derives from its buffers, and keeps, is forgotten."""
        _forget_codebooks(self.model)
        moved: nn.Module = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return moved


def load_transformers_codec(source: str) -> Codec:
    """A codec from config.json and weights as `transformers` saves them, computed by `transformers` itself.

    Args:
        source: a directory, or a name on the Hugging Face hub (owner/name). No code that lies there is run.

    Returns:
        The codec in float32 on the CPU, after one second of silence went through it and back.

    Raises:
        CheckpointError: no such place, no audio codec that is known here, a damaged one, or no `transformers`.
    """
    directory, snapshot, name = Path(source), None, source
    if source and _is_directory(directory):
        name = directory.resolve().name
    elif hub.is_repository(source):
        snapshot = hub.download_config(source)
        directory = snapshot.directory
    else:
        raise CheckpointError(f"hf:{source[:200]}: neither a directory nor a name on the Hugging Face hub (owner/name)")
    config = read_json(directory / "config.json")
    with _one_line_error(source):
        _require_codec(config)
    if snapshot is not None:
        hub.download_weights(snapshot)
    transformers = _import_transformers()
    with _one_line_error(source), _quiet(transformers):
        model = _load_model(transformers, directory)
        spec = _spec(model)
        codec = TransformersCodec(spec, model, _settings(config), name=name)
        _require_round_trip(codec)
    _forget_codebooks(model)
    return codec


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long for any file
        return False


def _require_codec(config: Mapping[str, Any]) -> None:
    """Refuse by the config alone, before gigabytes of something else are read."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in _REFUSED:
        raise ValueError(f"model type {model_type!r} is not supported: it {_REFUSED[model_type]}")
    if model_type not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise ValueError(f"model type {model_type!r:.60} is not an audio codec that is known here ({known})")
    if model_type == "encodec" and (config.get("chunk_length_s") is not None or config.get("normalize")):
        raise ValueError('its files are cut into segments; load it without "hf:"')
    for key, value in _all_settings(config):
        if key == "quantization_config" and value:
            raise ValueError("quantized weights are not supported: they would need other libraries")
        if key.endswith("attn_implementation") and value not in (None, "eager", "sdpa"):
            raise ValueError(f"{key} {value!r:.60} is not 'eager' or 'sdpa', and nothing else is loaded")


def _all_settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        yield key, value
        if isinstance(value, Mapping):
            yield from _all_settings(value)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without its bookkeeping: versions, paths, what only text generation needs."""
    kept = {key: value for key, value in config.items() if key not in GENERIC_FIELDS or key == "model_type"}
    return {key: _settings(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def _import_transformers() -> Any:
    try:
        import_torchaudio()  # some of its models need it, and their own import of it may fail
        return importlib.import_module("transformers")
    except (ImportError, OSError) as error:
        raise CheckpointError(
            f'codecs of transformers need it installed: pip install "quantone[hf]" ({_line(error)})'
        ) from error


def _load_model(transformers: Any, directory: Path) -> nn.Module:
    """The model with every weight read from its files, for inference."""
    model: nn.Module
    model, info = transformers.AutoModel.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True, local_files_only=True, trust_remote_code=False
    )
    missing = sorted(key for key in info["missing_keys"] if not key.endswith(_UNUSED_WEIGHT))
    missing += sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise ValueError(f"weights missing or of another shape {missing[:3]}")
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{key} has values that are NaN or infinite")
    return model.eval().requires_grad_(requires_grad=False)


def _rebuild(
    spec: CodecSpec, config: Any, weights: Mapping[str, Tensor], settings: Mapping[str, Any], name: str
) -> TransformersCodec:
    """A codec that was pickled or copied, on the device where it was."""
    transformers = _import_transformers()
    with _quiet(transformers):
        model = transformers.AutoModel.from_config(config, dtype=torch.float32)
    model.load_state_dict(weights)
    model = model.eval().requires_grad_(requires_grad=False).to(next(iter(weights.values())).device)
    return TransformersCodec(spec, model, settings, name=name)


def _spec(model: Any) -> CodecSpec:
    """Constants from the model's config; how many levels there are is seen from the codes of silence."""
    config = model.config
    sample_rate = config.sample_rate if hasattr(config, "sample_rate") else config.sampling_rate
    hop_length = config.frame_size if config.model_type == "mimi" else config.hop_length
    single = config.model_type == "xcodec2"
    codebook_size = math.prod(config.quantization_levels) if single else config.codebook_size
    channels = getattr(config, "audio_channels", 1)
    codes = _encode(model, torch.zeros(1, channels, sample_rate), hop_length)
    if codes.dim() != 3 or codes.is_floating_point() or int(codes.max()) >= codebook_size:
        raise ValueError(f"its codes are not integers [B, K, T] under {codebook_size}")
    return CodecSpec(
        family="transformers",
        sample_rate=sample_rate,
        hop_length=hop_length,
        num_codebooks=codes.shape[1],
        codebook_size=codebook_size,
        network=TransformersConfig(model_type=config.model_type),
        channels=channels,
        latent_dim=config.hidden_size,
    )


def _require_round_trip(codec: TransformersCodec) -> None:
    """Frames are counted as the spec says, for a single one and for a second of them, and decode to as much sound."""
    spec = codec.spec
    for num_samples in (spec.hop_length, spec.sample_rate):
        encoded = codec.encode(torch.zeros(spec.channels, num_samples))
        frames = encoded.codes.shape[-1]
        waveform = codec._decode_whole(encoded.codes, num_samples)  # noqa: SLF001 - before it is cut to its length
        excess = waveform.shape[-1] - frames * spec.hop_length
        if waveform.shape[:-1] != (1, spec.channels) or abs(excess) >= spec.hop_length:
            raise ValueError(f"{frames} frames of {spec.hop_length} samples decode to {list(waveform.shape)}")


def _encode(model: Any, waveform: Tensor, hop_length: int) -> Tensor:
    """One waveform [1, C, S] to codes of all levels [1, K, T]; silence fills the last frame."""
    config = model.config
    options: dict[str, Any] = {"return_dict": True}
    if config.model_type == "encodec":
        options["bandwidth"] = max(config.target_bandwidths)  # the others give all levels unasked
    if config.model_type == "mimi":
        options["use_streaming"] = False
    if config.model_type == "xcodec2":
        codes: Tensor = model.encode(**_features(config, waveform), **options).audio_codes
        return codes[..., : -(-waveform.shape[-1] // hop_length)]  # of whole frames it makes one too many
    padded = nn.functional.pad(waveform, (0, -waveform.shape[-1] % hop_length))
    codes = model.encode(padded, **options).audio_codes
    return codes[0] if config.model_type == "encodec" else codes


def _features(config: Any, waveform: Tensor) -> dict[str, Tensor]:
    """What X-Codec 2 takes: the waveform, which it pads itself, and its mel spectrogram."""
    transformers = importlib.import_module("transformers")
    extract = transformers.Xcodec2FeatureExtractor(sampling_rate=config.sampling_rate, hop_length=config.hop_length)
    found = extract(waveform[0, 0].cpu(), sampling_rate=config.sampling_rate, return_tensors="pt")
    return {key: value.to(waveform.device) for key, value in found.items()}


def _decode(model: Any, codes: Tensor) -> Tensor:
    """Codes of one file [1, K, T] to its waveform [1, C, S]."""
    options: dict[str, Any] = {"return_dict": True}
    if model.config.model_type == "encodec":
        codes, options["audio_scales"] = codes[None], [None]
    waveform: Tensor = model.decode(audio_codes=codes, **options).audio_values
    return waveform[:, None] if waveform.dim() == 2 else waveform


def _forget_codebooks(model: nn.Module) -> None:
    """Drop the codebooks that Mimi derives from its buffers: they would stay on their device."""
    for module in model.modules():
        if "_embed" in vars(module):
            vars(module)["_embed"] = None


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and no warnings while loading: what matters is raised."""
    logging = transformers.utils.logging
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()


@contextmanager
def _one_line_error(source: str) -> Iterator[None]:
    """Whatever `transformers` raises about files or settings, of a dozen types, as CheckpointError."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"hf:{source}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
