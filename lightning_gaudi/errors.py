"""What lightning_gaudi raises.

    GaudiError
      GaudiNotAvailableError (RuntimeError)   no Gaudi software or no card, and no emulator
      ExecutionModeError     (RuntimeError)   the Gaudi software runs in another mode than asked
      ConfigurationError     (ValueError)     an argument that cannot be
      CaptureError           (RuntimeError)   a forward cannot be captured as an HPU graph
        HostReadError                         it reads a device value on the host
      ReplayMismatchError    (RuntimeError)   a replay gave another result (verify=True)
      BudgetExceededError    (RuntimeError)   more compilations or host reads than allowed
      CheckpointError        (RuntimeError)   a checkpoint cannot be read
      NonFiniteError         (ArithmeticError)  a loss or a weight is NaN or infinite
      ProcessGroupError      (RuntimeError)   the processes of a run do not meet, or differ

Each message says what was expected, what came, and what to do.
"""


class GaudiError(Exception):
    """Base of every error that this package raises on purpose."""


class GaudiNotAvailableError(GaudiError, RuntimeError):
    """There is no HPU to run on."""


class ExecutionModeError(GaudiError, RuntimeError):
    """The Gaudi software is, or would be, loaded in another execution mode than was asked for."""


class ConfigurationError(GaudiError, ValueError):
    """An argument has a value that it cannot have."""


class CaptureError(GaudiError, RuntimeError):
    """A forward cannot be captured as an HPU graph."""


class HostReadError(CaptureError):
    """A forward reads a device value on the host, which a capture would freeze for ever."""


class ReplayMismatchError(GaudiError, RuntimeError):
    """A replayed forward gave another result than running it op by op."""


class BudgetExceededError(GaudiError, RuntimeError):
    """A run compiled, read from the device or fell back to the CPU more often than was allowed."""


class NonFiniteError(GaudiError, ArithmeticError):
    """A loss, or a weight that is about to be saved, is NaN or infinite."""


class CheckpointError(GaudiError, RuntimeError):
    """A checkpoint is not whole, is of another kind, or holds what may not be read from it."""


class ProcessGroupError(GaudiError, RuntimeError):
    """The processes of a run do not find each other, or do not fit together."""
