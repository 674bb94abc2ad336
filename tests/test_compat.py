"""Repairs to other packages touch what they name and nothing else."""

import typeguard

from espnet2_lamer.compat import skip_type_checks


def defined_in(module):
    """A function and a class, as if that module had defined them."""
    names = {"__name__": module, "typechecked": typeguard.typechecked}
    source = """
@typechecked
def plain(x: int) -> int:
    return x

@typechecked(forward_ref_policy=None)
def with_options(x: int) -> int:
    return x

@typechecked
class Thing:
    def method(self, x: int) -> int:
        return x

    @staticmethod
    @typechecked
    def static(x: int) -> int:
        return x
"""
    exec(compile(source, __file__, "exec"), names)
    return [names["plain"], names["Thing"]().method, names["Thing"].static]


def test_espnet_is_imported_without_type_checks():
    skip_type_checks()
    once = typeguard.typechecked
    skip_type_checks()
    assert typeguard.typechecked is once
    for module in ("espnet2.train.trainer", "espnet.nets.x", "inflect"):
        assert [call("text") for call in defined_in(module)] == ["text"] * 3


def test_other_packages_keep_theirs(monkeypatch):
    asked = []
    monkeypatch.setattr(typeguard, "typechecked", lambda x, **_: asked.append(x) or x)
    skip_type_checks()
    for module in ("espnet3.x", "jaxtyping", "espnet2_lamer.layers"):
        defined_in(module)
    # The decorator of others was asked for their function, class and static method.
    assert len(asked) == 3 * 4
