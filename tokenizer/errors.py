"""The errors that callers are meant to catch: one tree for all of Quantone."""


class QuantoneError(Exception):
    """Base of every error that Quantone raises about its input."""


class AudioError(QuantoneError):
    """Audio that cannot be read, or that the codec cannot take."""


class CodesError(QuantoneError):
    """Codes of the wrong shape, type, range or bandwidth."""


class CheckpointError(QuantoneError):
    """A codec or language model that cannot be loaded."""


class BitstreamError(QuantoneError):
    """Compressed bytes that are damaged or belong to another model."""


class DatasetError(QuantoneError):
    """A token dataset that is missing, damaged or made by something else."""
