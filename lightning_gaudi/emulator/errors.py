"""What the emulated HPU raises.

RuntimeError
  EmulatorError              the emulator cannot be put into this process
  GraphCaptureError          a graph primitive was used as a card would not survive
"""


class EmulatorError(RuntimeError):
    """The emulated HPU cannot be installed in this process; the message says why and what to do."""


class GraphCaptureError(RuntimeError):
    """A capture or replay call that would abort the process, hang or answer wrongly on a card."""
