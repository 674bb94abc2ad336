"""What processes do that would share a GPU, where there is none.

A module of its own, which a process loads in no time.
"""

import logging
import os
import signal

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.gpus import CudaMemory

GB = 10**9


class Plain(CudaMemory):
    """A GPU with room for all, which nobody uses."""

    def bind(self, gpu):
        self.gpu = gpu

    def free(self):
        return 80 * GB

    def restart(self):
        pass

    def peak(self):
        return GB

    def release(self):
        pass


def report(number):
    logging.getLogger("espnet2_lamer.test").info("call %d", number)
    if number < 0:
        raise RecipeError("exp/head: no text")
    if number == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    return number, os.getpid(), os.environ["OMP_NUM_THREADS"]
