"""Functions that replace others and fail a given number of times first."""


def failing(error, times=10**9):
    """A function that raises so many times, and does nothing from then on."""
    left = [times]

    def fail(*_args, **_options):
        left[0] -= 1
        if left[0] >= 0:
            raise error

    return fail


def failing_first(monkeypatch, module, name, error, times):
    """Let a function fail so many times before it does its work."""
    real, fail = getattr(module, name), failing(error, times)
    monkeypatch.setattr(module, name, lambda *args, **options: fail() or real(*args, **options))
