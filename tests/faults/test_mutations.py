"""The list of mutations stays true: guards, tests and the table in README.md exist as it says."""

import pytest

from tests.faults.mutate import HERE, ROOT, TABLE, Mutation, mutations, table


@pytest.mark.parametrize("mutation", list(mutations()), ids=lambda one: f"{one.fault}-{one.file}")
def test_guard_and_test_of_a_mutation_exist(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text()
    compile(mutation.mutated(text), mutation.file, "exec")
    file, _, name = mutation.test.partition("::")
    assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text()


def test_the_table_in_the_readme_is_the_list() -> None:
    found = TABLE.search((HERE / "README.md").read_text())
    assert found is not None
    assert found[0] == table(), "run python -m tests.faults.mutate --table"
