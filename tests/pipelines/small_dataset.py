"""A token dataset of some short files, written without Ray."""

from pathlib import Path

import torch

from pipelines.dataset_info import DatasetInfo, write_dataset_info
from pipelines.parts import ErrorRow, TokenRow, encode_errors, encode_part, part_name
from tokenizer import RESAMPLER, load_codec, mix_channels, read_audio, resample


def write_small_dataset(
    folder: Path, dataset: Path, codec_dir: Path, *, ids=None, num_codebooks=4, files_per_part=4, errors=()
) -> dict[str, torch.Tensor]:
    """Encode a folder of audio into a dataset, several parts, and give the codes [K, T] back by id.

    `ids` replaces the ids that the files would get, in sorted order; `errors` are (id, message) pairs.
    """
    codec = load_codec(codec_dir)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = ids or [path.relative_to(folder).as_posix() for path in paths]
    info = DatasetInfo(
        codec={**codec.card(), "source": str(codec_dir)},
        bandwidth_kbps=codec.spec.level_kbps * num_codebooks,
        num_codebooks=num_codebooks,
        resampler=RESAMPLER,
        plan_sha256="",
    )
    for kind in ("parts", "errors"):
        (dataset / kind).mkdir(parents=True, exist_ok=True)
    write_dataset_info(str(dataset), info)
    rows = []
    for name, path in zip(names, paths, strict=True):
        waveform, rate = read_audio(path)
        heard = resample(mix_channels(waveform, 1), rate, codec.spec.sample_rate)
        codes = codec.encode(heard).codes[0, :num_codebooks].numpy().astype("uint16")
        rows.append(TokenRow(name, str(path), heard.shape[-1], rate, waveform.shape[0], 0.5, -20.0, codes))
    for unit, start in enumerate(range(0, len(rows), files_per_part)):
        content = encode_part(rows[start : start + files_per_part], codec.spec, num_codebooks, info.codec)
        (dataset / "parts" / part_name(unit)).write_bytes(content)
    if errors:
        failed = [ErrorRow(name, f"/gone/{name}", "AudioError", message) for name, message in errors]
        (dataset / "errors" / part_name(0)).write_bytes(encode_errors(failed))
    return {row.id: torch.from_numpy(row.codes.astype("int64")) for row in rows}
