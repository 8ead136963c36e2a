"""The files of a token dataset: its plan, parts, errors and records, how they are scanned, whether all is whole."""
