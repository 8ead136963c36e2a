"""The program that a `Driver` is: one corpus job, with the faults that its test wants; prints its summary as JSON."""

import dataclasses
import json
import sys
from importlib import import_module

from pipelines import tokenize_corpus
from tests.pipelines import worker_faults
from tokenizer import QuantoneError


def main(arguments):
    """Run the job; its own errors end it with exit code 1 and one line."""
    source, dataset, settings, faults = json.loads(arguments)
    for place, (fault, options) in faults.items():
        module, _, name = place.rpartition(".")
        setattr(import_module(module), name, getattr(worker_faults, fault)(**options))
    try:
        summary = tokenize_corpus(source, dataset, **settings)
    except (QuantoneError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.stdout.write(json.dumps(dataclasses.asdict(summary)))


if __name__ == "__main__":
    main(sys.argv[1])
