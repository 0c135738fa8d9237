"""Bytes, seconds and tables as they are printed."""

from gpt.analysis.format import human_bytes, human_seconds, table, table_row


def test_units():
    assert [human_bytes(n) for n in (5, 2048, 3 * 2**20, 5 * 2**30)] == ["5 B", "2 KiB", "3 MiB", "5.0 GiB"]
    assert [human_seconds(n) for n in (59, 600, 4 * 3600 + 300, 864e3)] == ["59 s", "10 min", "4 h 5 min", "10.0 days"]


def test_a_table_aligns_its_columns_and_leaves_missing_cells_blank():
    columns = ("op:8", "calls:>6", "ms:>7.2f", "bound by:>10")
    assert table([("linear", 3, 1.234, "bytes"), ("a b", None, 10), ("total", None, None, "all")], columns).splitlines() == [
        "op       calls     ms  bound by",
        "linear       3   1.23     bytes",
        "a b             10.00",
        "total                       all",
    ]
    assert table_row(("x", 1.0), (":3", "tokens/s:>9,.0f")) == "x          1"
    assert table([(12345.6,)], ("tokens/s:>9,.0f",)) == " tokens/s\n   12,346"
