"""Every example of a docstring runs, with warnings as errors."""

import doctest
import importlib
import pkgutil

import pytest

import jaxrobust

MODULES = sorted(module.name for module in pkgutil.walk_packages(jaxrobust.__path__, "jaxrobust.") if not module.ispkg)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name):
    package, _, _ = name.rpartition(".")
    # The package first: some functions have their module's name and must not be hidden by it.
    importlib.import_module(package)
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_a_wrong_example_is_seen(capsys):
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner().run(test).failed == 1
    capsys.readouterr()


def test_most_of_what_is_public_has_an_example():
    found = [
        name
        for name in MODULES
        if any(test.examples for test in doctest.DocTestFinder().find(importlib.import_module(name)))
    ]
    assert len(found) > len(MODULES) / 2
