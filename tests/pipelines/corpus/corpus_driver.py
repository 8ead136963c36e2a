"""The program that a `Driver` is: one corpus job, with the faults that its test wants; prints its counts as JSON."""

import json
import sys
from importlib import import_module

from pipelines import tokenize_corpus
from tests.pipelines.corpus import worker_faults
from tokenizer import QuantoneError


def main(arguments):
    """Run the job; its own errors end it with exit code 1 and one line."""
    source, dataset, settings, faults = json.loads(arguments)
    install(faults)
    try:
        summary = tokenize_corpus(source, dataset, **settings)
    except (QuantoneError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    counts = ("num_files", "num_skipped", "num_ok", "num_errors")
    sys.stdout.write(json.dumps({name: getattr(summary, name) for name in counts}))


def install(faults):
    """Put what fails in the place of the real one: dotted name -> factory in `worker_faults`, and its options."""
    for place, (fault, options) in faults.items():
        module, _, name = place.rpartition(".")
        setattr(import_module(module), name, getattr(worker_faults, fault)(**options))


if __name__ == "__main__":
    main(sys.argv[1])
