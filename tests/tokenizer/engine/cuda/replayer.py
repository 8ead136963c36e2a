"""What CUDA graphs do, on a CPU: a function recorded once, replayed on the tensors that it read and wrote then."""

from contextlib import contextmanager

import torch


class Replayer:
    """A recorder whose replays run the function again and write into the tensors of the first run.

    Args:
        fails_with: what recording raises.
        forgets_inputs: whether replays give what the recording gave, whatever the inputs are by then.
    """

    def __init__(self, fails_with=None, *, forgets_inputs=False):
        self._fails_with, self._forgets_inputs = fails_with, forgets_inputs
        self.recorded = self.replayed = self.settled = 0
        self._in_turn = False

    def record(self, function):
        assert self._in_turn
        if self._fails_with is not None:
            raise self._fails_with
        self.recorded += 1
        function()  # the run that warms up: its tensors are not those of the recording
        outputs = function()

        def replay():
            assert self._in_turn
            self.replayed += 1
            if not self._forgets_inputs:
                for own, new in zip(outputs[0], function()[0], strict=True):
                    own.copy_(new)

        return replay, outputs

    @contextmanager
    def turn(self):
        assert not self._in_turn
        self._in_turn = True
        with torch.no_grad():
            yield
        self._in_turn = False

    def settle(self):
        self.settled += 1
