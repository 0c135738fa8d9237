"""The tests mirror the packages; `support/` is on the path. A package, so that one test file can import another by its name."""
