"""The bill of a run, from a report by service."""

from demo.bill import bill_lines, bill_table

_ROWS = [
    {"name": "(unused in a100)", "total": "0.500000000", "share": "0.500000"},
    {"name": "team-b/mail", "total": "0.300000000", "share": "0.300000"},
    {"name": "team-a/batch/night", "total": "0.110000000", "share": "0.110000"},
    {"name": "team-b/chat", "total": "0.090000000", "share": "0.090000"},
]


def test_the_bill_has_the_sum_of_each_tenant_and_the_unused_parts_last() -> None:
    assert list(bill_table(bill_lines(_ROWS))) == [
        "TENANT, SERVICE          USD  SHARE",
        "team-b                0.3900  39.0%",
        "  team-b/mail         0.3000",
        "  team-b/chat         0.0900",
        "team-a                0.1100  11.0%",
        "  team-a/batch/night  0.1100",
        "(unused)              0.5000  50.0%",
        "  (unused in a100)    0.5000",
    ]
